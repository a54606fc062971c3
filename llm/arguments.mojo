"""Command lines: one table of options, from which parsing, `--help` and the printed settings come.

A program declares its options and reads values by their long names:

    var args = parse_arguments("train_gpt2", "Trains a GPT-2.", [Option("batch-size", "b", "N", "4", "sequences (B)")])
    var B = args.int("batch-size", minimum=1)

A mistake in the flags ends the program with status 2 and a message on stderr.
"""

from std.sys import argv, exit, stderr


@fieldwise_init
struct Option(Copyable, Movable):
    """One row of the table."""

    var name: String
    """Long name, without its dashes."""
    var letter: String
    """Short name of one or two letters, without its dash; empty if there is none."""
    var value_name: String
    """What a value is called in the help: FILE, N, one|two|three; empty for a switch, which takes none."""
    var default: String
    """The value if none is given; empty if there is none."""
    var meaning: String
    """What it does, in a few words."""

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
        for ref option in options:
            self._values.append(option.default)
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
            var flag = word
            var value = Optional[String](None)
            var equals = word.find("=")
            if word.startswith("-") and equals > 0:
                flag = String(word[byte=:equals])
                value = String(word[byte = equals + 1 :])
            var index = self._find(flag)
            if index < 0:
                raise Error(self._unknown(flag))
            ref option = self.options[index]
            if option.is_switch():
                if value:
                    raise Error(t"--{option.name}: expected no value, got '{value.value()}'")
                value = String("1")
            elif not value:
                if i == len(words) or self._find(words[i]) >= 0:
                    raise Error(t"{flag}: expected a value ({option.flags().strip()}), got none")
                value = words[i]
                i += 1
            self._values[index] = value.value()
            self._given[index] = True
            self._files[index] = ""

    def set(mut self, name: String, value: String, file: String) raises:
        """Gives an option the value that a file has for it.

        Raises:
            If there is no such option, or it is a switch and the value is neither 0 nor 1.
        """
        var index = self._find("--" + name)
        if index < 0:
            raise Error(self._unknown("--" + name).replace("flag --", "name ").replace("mean --", "mean "))
        if self.options[index].is_switch() and value != "0" and value != "1":
            raise Error(t"{name}: expected true or false, found {value}")
        self._values[index] = value
        self._given[index] = value != "0" or not self.options[index].is_switch()
        self._files[index] = file

    def fail(self, message: String):
        """Ends the program with status 2 and a message about its flags."""
        print(t"{self.program}: {message}\n`{self.program} --help` lists the flags", file=stderr)
        exit(2)

    # ----- values

    def given(self, name: String) raises -> Bool:
        """Tells whether an option has been given a value."""
        return self._given[self._index(name)]

    def given_as_flag(self, name: String) raises -> Bool:
        """Tells whether an option has been given a value by a flag, not by a file."""
        var index = self._index(name)
        return self._given[index] and self._files[index].byte_length() == 0

    def string(self, name: String) raises -> String:
        """Returns the value of an option as it was written."""
        return self._values[self._index(name)]

    def int(self, name: String, *, minimum: Int = 0, maximum: Int = Int(Int32.MAX)) raises -> Int:
        """Returns the value of an option that takes an integer; anything else ends the program."""
        var text = self.string(name)
        var value = minimum
        var good = True
        try:
            value = Int(text)
        except:
            good = False
        if not good or value < minimum or value > maximum:
            var range = String(t"from {minimum} to {maximum}")
            if maximum == Int(Int32.MAX):
                range = String(t"of at least {minimum}")
            self.fail(String(t"{self._source(name)}: expected an integer {range}, got '{text}'"))
        return value

    def float(self, name: String, *, minimum: Float64 = 0, maximum: Float64 = Float64.MAX_FINITE) raises -> Float64:
        """Returns the value of an option that takes a number; anything else ends the program."""
        var text = self.string(name)
        var value = minimum
        var good = True
        try:
            value = Float64(text)
        except:
            good = False
        # Written so that NaN is refused as well.
        if not (good and value >= minimum and value <= maximum):
            var range = String(t"from {minimum} to {maximum}")
            if maximum == Float64.MAX_FINITE:
                range = String(t"of at least {minimum}")
            self.fail(String(t"{self._source(name)}: expected a number {range}, got '{text}'"))
        return value

    def choice(self, name: String) raises -> String:
        """Returns the value of an option that takes one of the words in its value name; another ends the program."""
        var index = self._index(name)
        var choices = self.options[index].value_name
        for choice in choices.split("|"):
            if choice == self._values[index]:
                return self._values[index]
        self.fail(String(t"{self._source(name)}: expected {choices}, got '{self._values[index]}'"))
        return ""

    def bool(self, name: String) raises -> Bool:
        """Tells whether a switch was there, or whether an option that takes 0|1 is 1."""
        var index = self._index(name)
        if self.options[index].is_switch():
            return self._given[index]
        return self.int(name, minimum=0, maximum=1) == 1

    # ----- text

    def help(self) -> String:
        """Writes the text of `--help`."""
        var width = 0
        for ref option in self.options:
            width = max(width, option.flags().byte_length())
        var text = String(t"usage: {self.program} [flags]\n\n{self.summary}\n\n")
        for ref option in self.options:
            var note = String()
            if option.default.byte_length() > 0:
                note = String(t" (default: {option.default})")
            text += String(t"  {option.flags().ascii_ljust(width)}  {option.meaning}{note}\n")
        var own = String("    --help") if self._find("-h") >= 0 else String(" -h --help")
        text += String(t"  {own.ascii_ljust(width)}  this text\n")
        return text^

    def settings(self) -> List[Tuple[String, String]]:
        """Lists every option and its value, for printing with `report.aligned`."""
        var rows = List[Tuple[String, String]]()
        for i in range(len(self.options)):
            var value = self._values[i]
            if self.options[i].is_switch():
                value = "on" if self._given[i] else "off"
            elif value.byte_length() == 0:
                value = "none"
            rows.append((self.options[i].name, value))
        return rows^

    # ----- look-up

    def _index(self, name: String) raises -> Int:
        for i in range(len(self.options)):
            if self.options[i].name == name:
                return i
        raise Error(t"arguments: {self.program} declares no option --{name}")

    def _source(self, name: String) raises -> String:
        """Says where a value is from, for messages."""
        ref file = self._files[self._index(name)]
        return String(t"{file}: {name}") if file.byte_length() > 0 else "--" + name

    def _asks_for_help(self, words: List[String]) -> Bool:
        var is_letter = self._find("-h") >= 0
        for i in range(len(words)):
            var has_value = i + 1 < len(words) and not words[i + 1].startswith("-")
            if words[i] == "--help" or (words[i] == "-h" and not (is_letter and has_value)):
                return True
        return False

    def _find(self, word: String) -> Int:
        """Looks a word like `-b` or `--batch-size` up; -1 if it is no flag of this program."""
        for i in range(len(self.options)):
            ref option = self.options[i]
            if word == "--" + option.name or (option.letter.byte_length() > 0 and word == "-" + option.letter):
                return i
        return -1

    def _unknown(self, word: String) -> String:
        if not word.startswith("-"):
            return String(t"unexpected '{word}': values follow their flag")
        var nearest = String("--help")
        var smallest = _distance(word, nearest)
        for ref option in self.options:
            for candidate in ["--" + option.name, "-" + option.letter]:
                var distance = _distance(word, candidate)
                if distance < smallest and candidate != "-":
                    smallest = distance
                    nearest = candidate
        return String(t"unknown flag {word}; did you mean {nearest}?")


def parse_arguments(program: String, summary: String, var options: List[Option]) -> Arguments:
    """Parses what the program was called with.

    `-h` and `--help` print the help and end the program with status 0, a mistake ends it with status 2. Where `-h` is
    also the letter of an option, it asks for help only without a value.
    """
    var args = Arguments(program, summary, options^)
    var words = command_line()
    if args._asks_for_help(words):
        print(args.help(), end="", flush=True)
        exit(0)
    try:
        args.parse(words)
    except error:
        args.fail(String(error))
    return args^


def command_line() -> List[String]:
    """Returns what the program was called with, without its own name."""
    var words = List[String]()
    for i in range(1, len(argv())):
        words.append(String(argv()[i]))
    return words^


def _distance(word: String, flag: String) -> Int:
    """Counts what makes a flag of a word: less for a wrong case, dash or missing end than for another letter.

    Levenshtein's distance in steps of 4; characters that differ only in case, and `_` for `-`, cost 1, and so does each
    character by which the flag goes on after all of the word.
    """
    var a = word.as_bytes()
    var b = flag.as_bytes()
    var above = List[Int](length=len(b) + 1, fill=0)
    for j in range(len(b) + 1):
        above[j] = 4 * j
    for i in range(len(a)):
        var row: List[Int] = [4 * (i + 1)]
        for j in range(len(b)):
            var change = above[j] + _difference(a[i], b[j])
            var insertion = row[j] + (1 if i + 1 == len(a) else 4)
            row.append(min(change, insertion, above[j + 1] + 4))
        above = row^
    return above[len(b)]


def _difference(a: UInt8, b: UInt8) -> Int:
    if a == b:
        return 0
    return 1 if _folded(a) == _folded(b) else 4


def _folded(c: UInt8) -> UInt8:
    """Takes capitals for small letters and `_` for `-`."""
    if c == UInt8(ord("_")):
        return UInt8(ord("-"))
    return c + 32 if UInt8(ord("A")) <= c <= UInt8(ord("Z")) else c
