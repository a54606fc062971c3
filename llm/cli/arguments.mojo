"""Command lines: one table of options, from which parsing, `--help` and the printed settings come.

A program declares its options and reads values by their long names:

    var size = Option("batch-size", "b", "N", "4", "sequences (B)", minimum=1)
    var args = parse_arguments("train_gpt2", "Trains a GPT-2.", [size])
    var B = args.int("batch-size")

A mistake in the flags ends the program with status 2 and a message on stderr.
"""

from std.sys import argv, exit

from llm.base.numbers import parse_integer, parse_number
from llm.base.strings import part
from llm.cli.screen import Screen, complain, open_standard_streams
from llm.cli.shell import called_as
from llm.cli.signals import ignore_broken_pipes
from llm.cli.version import VERSION


struct Option(TrivialRegisterPassable):
    """One row of the table."""

    var name: StaticString
    """Long name, without its dashes."""
    var letter: StaticString
    """Short name of one or two letters, without its dash; empty if there is none."""
    var value_name: StaticString
    """What a value is called in the help, which tells what it is: N an integer, X a number, one|two a choice of words,
    0|1 of digits, FILE and others a text; empty for a switch, which takes none."""
    var default: StaticString
    """The value if none is given; empty if there is none."""
    var meaning: StaticString
    """What it does, in a few words."""
    var minimum: Float64
    """The smallest value, if it takes a number."""
    var maximum: Float64
    """The largest one; MAX_FINITE if there is no bound but that of the type."""

    def __init__(
        out self,
        name: StaticString,
        letter: StaticString,
        value_name: StaticString,
        default: StaticString,
        meaning: StaticString,
        *,
        minimum: Float64 = 0,
        maximum: Float64 = Float64.MAX_FINITE,
    ):
        """Declares an option."""
        self.name = name
        self.letter = letter
        self.value_name = value_name
        self.default = default
        self.meaning = meaning
        self.minimum = minimum
        self.maximum = maximum

    def flags(self) -> String:
        """Spells the option as in the help: ` -b --batch-size N`."""
        var short = String("   ")
        if self.letter.byte_length() > 0:
            short = ("-" + self.letter).ascii_rjust(3)
        return String(t"{short} --{self.name} {self.value_name}")

    def is_switch(self) -> Bool:
        """Tells whether the option takes no value."""
        return self.value_name.byte_length() == 0


struct Arguments(Movable):
    """The options of a program and the values that they have been given."""

    var program: String
    var summary: String
    """What the program does, for the top of the help."""
    var options: List[Option]
    var _values: List[String]
    var _given: List[Bool]
    var _files: List[String]
    """The file that a value is from; empty if it is from a flag."""

    def __init__(out self, program: String, summary: String, var options: List[Option]):
        """Starts with every option at its default."""
        self.program = program
        self.summary = summary
        self._values = List[String](capacity=len(options))
        self._given = List[Bool](length=len(options), fill=False)
        self._files = List[String](length=len(options), fill=String())
        for option in options:
            self._values.append(String(option.default))
        self.options = options^

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    # ----- parsing

    def parse(mut self, words: List[String]) raises:
        """Takes `-b 4`, `--batch-size 4` and `--batch-size=4`; of repeated flags the last counts.

        Raises:
            If a flag is unknown, a value is missing, or a switch has one.
        """
        var i = 0
        while i < len(words):
            ref word = words[i]
            i += 1
            var equals = word.find("=")
            var has_value = word.startswith("-") and equals > 0
            var flag = part(word, 0, equals) if has_value else word
            var value = part(word, equals + 1, word.byte_length()) if has_value else String()
            var index = self._find(flag)
            if index < 0:
                raise Error(self._unknown(flag))
            var option = self.options[index]
            if option.is_switch():
                if has_value:
                    raise Error(t"--{option.name}: expected no value, got '{value}'")
                value = "1"
            elif not has_value:
                if i == len(words) or self._find(words[i]) >= 0:
                    raise Error(t"{flag}: expected a value ({option.flags().strip()}), got none")
                value = words[i]
                i += 1
            self._assign(index, value, True, "")

    def set(mut self, name: String, value: String, file: String) raises:
        """Gives an option the value that a file has for it.

        Raises:
            If there is no such option, or it is a switch and the value is neither 0 nor 1.
        """
        var index = self._find("--" + name)
        if index < 0:
            raise Error(self._unknown("--" + name).replace("flag --", "name ").replace("mean --", "mean "))
        var is_switch = self.options[index].is_switch()
        if is_switch and value != "0" and value != "1":
            raise Error(t"{name}: expected true or false, found {value}")
        self._assign(index, value, value != "0" or not is_switch, file)

    def _assign(mut self, index: Int, value: String, given: Bool, file: String):
        self._values[index] = value
        self._given[index] = given
        self._files[index] = file

    def fail(self, message: String):
        """Ends the program with status 2 and a message about its flags."""
        var called = called_as()
        complain(String(t"{self.program}: {message}\n`{called if called else self.program} --help` lists the flags"))
        exit(2)

    # ----- values

    def given(self, name: StaticString) -> Bool:
        """Tells whether an option has been given a value."""
        return self._given[self._index(name)]

    def given_as_flag(self, name: StaticString) -> Bool:
        """Tells whether an option has been given a value by a flag, not by a file."""
        var index = self._index(name)
        return self._given[index] and self._files[index].byte_length() == 0

    def string(self, name: StaticString) -> ref[self._values[0]] String:
        """Returns the value of an option as it was written."""
        return self._values[self._index(name)]

    def int(self, name: StaticString, *, maximum: Int = Int(Int32.MAX)) -> Int:
        """Returns the value of an option that takes an integer; another, or one out of bounds, ends the program.

        `maximum` is a bound that only a file tells; what is known before belongs to the option.
        """
        ref text = self.string(name)
        var option = self.options[self._index(name)]
        var lowest = Int(option.minimum)
        var highest = maximum if option.maximum > Float64(maximum) else Int(option.maximum)
        var value = parse_integer(text)
        if value and value.value() >= lowest and value.value() <= highest:
            return value.value()
        var range = String(t"from {lowest} to {highest}")
        if highest == Int(Int32.MAX) and not (value and value.value() > highest):
            range = String(t"of at least {lowest}")
        self.fail(String(t"{self._source(name)}: expected an integer {range}, got '{text}'"))
        return lowest

    def float(self, name: StaticString) -> Float64:
        """Returns the value of an option that takes a number; another, or one out of bounds, ends the program."""
        ref text = self.string(name)
        var option = self.options[self._index(name)]
        var value = parse_number(text)
        if value and value.value() >= option.minimum and value.value() <= option.maximum:
            return value.value()
        var range = String(t"from {option.minimum} to {option.maximum}")
        if option.maximum == Float64.MAX_FINITE:
            range = String(t"of at least {option.minimum}")
        self.fail(String(t"{self._source(name)}: expected a number {range}, got '{text}'"))
        return option.minimum

    def choice(self, name: StaticString) -> StaticString:
        """Returns the value of an option that takes one of the words in its value name; another ends the program."""
        ref value = self.string(name)
        var choices = self.options[self._index(name)].value_name
        for choice in choices.split("|"):
            if choice == value:
                return choice
        self.fail(String(t"{self._source(name)}: expected {choices}, got '{value}'"))
        return ""

    def bool(self, name: StaticString) -> Bool:
        """Tells whether a switch was there, or whether an option that takes 0|1 is 1."""
        if self.options[self._index(name)].is_switch():
            return self.given(name)
        return self.int(name, maximum=1) == 1

    def is_changed(self, name: StaticString) -> Bool:
        """Tells whether an option has another value than its default."""
        var index = self._index(name)
        return self._given[index] and self._values[index] != self.options[index].default

    def check(self):
        """Reads every value that was given once, so that a wrong one ends the program before any file is opened."""
        for option in self.options:
            if option.is_switch() or not self.given(option.name):
                continue
            var kind = option.value_name
            if kind == "N" or kind == "0|1|2":
                _ = self.int(option.name)
            elif kind == "0|1":
                _ = self.bool(option.name)
            elif kind == "X":
                _ = self.float(option.name)
            elif "|" in kind and kind == kind.lower():
                _ = self.choice(option.name)

    # ----- text

    def help(self) -> String:
        """Writes the text of `--help`."""
        var width = 0
        for option in self.options:
            width = max(width, option.flags().byte_length())
        var text = String(t"usage: {self.program} [flags]\n\n{self.summary}\n\n")
        for option in self.options:
            var note = String()
            if option.default.byte_length() > 0:
                note = String(t" (default: {option.default})")
            text += String(t"  {option.flags().ascii_ljust(width)}  {option.meaning}{note}\n")
        var own = String("    --help") if self._find("-h") >= 0 else String(" -h --help")
        text += String(t"  {own.ascii_ljust(width)}  this text\n")
        text += String(t"  {String('    --version').ascii_ljust(width)}  the version\n")
        return text^

    def settings(self) -> List[Tuple[String, String]]:
        """Lists every option and its value, for printing with `report.aligned`."""
        var rows = List[Tuple[String, String]]()
        for option in self.options:
            var value = self.string(option.name)
            if option.is_switch():
                value = "on" if self.given(option.name) else "off"
            elif value.byte_length() == 0:
                value = "none"
            rows.append((String(option.name), value))
        return rows^

    # ----- look-up

    def _index(self, name: StaticString) -> Int:
        """Returns the row of an option; one that the program does not declare ends it."""
        for i, option in enumerate(self.options):
            if option.name == name:
                return i
        self.fail(String(t"arguments: there is no option --{name} to ask for"))
        return 0

    def _source(self, name: StaticString) -> String:
        """Says where a value is from, for messages."""
        ref file = self._files[self._index(name)]
        return String(t"{file}: {name}") if file.byte_length() > 0 else String(t"--{name}")

    def _asks_for_help(self, words: List[String]) -> Bool:
        var is_letter = self._find("-h") >= 0
        for i, word in enumerate(words):
            var has_value = i + 1 < len(words) and not words[i + 1].startswith("-")
            if word == "--help" or (word == "-h" and not (is_letter and has_value)):
                return True
        return False

    def _find(self, word: String) -> Int:
        """Looks a word like `-b` or `--batch-size` up; -1 if it is no flag of this program."""
        for i, option in enumerate(self.options):
            if word == "--" + option.name or (option.letter.byte_length() > 0 and word == "-" + option.letter):
                return i
        return -1

    def _unknown(self, word: String) -> String:
        if not word.startswith("-"):
            return String(t"unexpected '{word}': values follow their flag")
        var nearest = String("--help")
        var smallest = _distance(word, nearest)
        for option in self.options:
            var candidate = "--" + option.name
            var distance = _distance(word, candidate)
            var short = "-" + option.letter
            var short_distance = _distance(word, short)
            if option.letter.byte_length() > 0 and short_distance < min(distance, smallest):
                smallest = short_distance
                nearest = short
            elif distance < smallest:
                smallest = distance
                nearest = candidate
        return String(t"unknown flag {word}; did you mean {nearest}?")


def parse_arguments(program: String, summary: String, var options: List[Option]) -> Arguments:
    """Parses what the program was called with.

    `-h` and `--help` print the help, `--version` the version, and end the program with status 0; a mistake ends it with
    status 2. Where `-h` is also the letter of an option, it asks for help only without a value.
    """
    open_standard_streams()
    ignore_broken_pipes()
    var args = Arguments(program, summary, options^)
    var words = command_line()
    if args._asks_for_help(words):
        _say_and_exit(program, args.help())
    if "--version" in words:
        _say_and_exit(program, String(t"{program} (llm.mojo) {VERSION}\n"))
    try:
        args.parse(words)
    except error:
        args.fail(String(error))
    args.check()
    return args^


def _say_and_exit(program: String, text: String):
    var screen = Screen()
    screen.text(text)
    try:
        screen.check()
    except error:
        complain(String(t"{program}: {error}"))
        exit(1)
    exit(0)


def command_line() -> List[String]:
    """Returns what the program was called with, without its own name."""
    var words = List[String]()
    for i, word in enumerate(argv()):
        if i > 0:
            words.append(String(word))
    return words^


def _distance(word: String, flag: String) -> Int:
    """Counts what makes a flag of a word: less for a wrong case, dash or missing end than for another letter.

    Levenshtein's distance in steps of 4; characters that differ only in case, and `_` for `-`, cost 1, and so does each
    character by which the flag goes on after all of the word.
    """
    var a = word.as_bytes()
    var b = flag.as_bytes()
    # One row of distances: those of the word up to its last letter from every beginning of the flag.
    var row = List[Int](length=len(b) + 1, fill=0)
    for j in range(len(b) + 1):
        row[j] = 4 * j
    for i, x in enumerate(a):
        var above_left = row[0]
        var left = 4 * (i + 1)
        row[0] = left
        for j, y in enumerate(b):
            var above = row[j + 1]
            var insertion = left + (1 if i + 1 == len(a) else 4)
            left = min(above_left + _difference(x, y), insertion, above + 4)
            above_left = above
            row[j + 1] = left
    return row[len(b)]


def _difference(a: UInt8, b: UInt8) -> Int:
    if a == b:
        return 0
    return 1 if _folded(a) == _folded(b) else 4


def _folded(c: UInt8) -> UInt8:
    """Takes capitals for small letters and `_` for `-`."""
    if c == UInt8(ord("_")):
        return UInt8(ord("-"))
    return c + 32 if UInt8(ord("A")) <= c <= UInt8(ord("Z")) else c
