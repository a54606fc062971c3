"""Command lines: one table of options, from which parsing, `--help` and the printed settings come.

A program declares its options, calls `parse_command_line` and reads values by their long names:

    var args = Arguments("train_gpt2", "Trains a GPT-2.", [Option.integer("b", "batch-size", 4, "sequences per batch")])
    args.parse_command_line()
    var B = args.int("batch-size")
"""

from std.sys import argv, exit, stderr

comptime _INTEGER = 0
comptime _NUMBER = 1
comptime _TEXT = 2
comptime _CHOICE = 3
comptime _SWITCH = 4
comptime _LARGEST = Float64(1e30)


@fieldwise_init
struct Option(Copyable, Movable):
    """One row of the table. The constructors below say what kinds there are."""

    var letter: String
    """Short name without its dash, of one or two letters; empty if there is none."""
    var name: String
    """Long name without its dashes."""
    var value_name: String
    """What a value is called in the help; for a choice, all of them separated by |; empty for a switch."""
    var default: String
    """The value if none is given."""
    var meaning: String
    """What it does, in a few words."""
    var kind: Int
    var minimum: Float64
    var maximum: Float64

    @staticmethod
    def integer(
        letter: String, name: String, default: Int, meaning: String, *, minimum: Int = 0, maximum: Int = Int(Int32.MAX)
    ) -> Self:
        """Describes a whole number."""
        return Self(
            letter, name, "N", String(default), meaning, _INTEGER, minimum=Float64(minimum), maximum=Float64(maximum)
        )

    @staticmethod
    def number(
        letter: String,
        name: String,
        default: String,
        meaning: String,
        *,
        minimum: Float64 = 0,
        maximum: Float64 = _LARGEST,
    ) -> Self:
        """Describes a number; the default is given as it should be printed."""
        return Self(letter, name, "X", default, meaning, _NUMBER, minimum=minimum, maximum=maximum)

    @staticmethod
    def text(letter: String, name: String, value_name: String, default: String, meaning: String) -> Self:
        """Describes a name, a path or a pattern."""
        return Self(letter, name, value_name, default, meaning, _TEXT, minimum=0, maximum=0)

    @staticmethod
    def choice(letter: String, name: String, choices: String, default: String, meaning: String) -> Self:
        """Describes one of several words, given as `one|two|three`."""
        return Self(letter, name, choices, default, meaning, _CHOICE, minimum=0, maximum=0)

    @staticmethod
    def switch(letter: String, name: String, meaning: String) -> Self:
        """Describes something that is off unless the flag, which takes no value, is there."""
        return Self(letter, name, "", "0", meaning, _SWITCH, minimum=0, maximum=0)

    def flags(self) -> String:
        """Spells the option as in the help: `-b, --batch-size N`."""
        var text = String("    --") + self.name
        if self.letter.byte_length() > 0:
            var gap = "" if self.letter.byte_length() > 1 else " "
            text = String(t"{gap}-{self.letter} --{self.name}")
        if self.value_name.byte_length() > 0:
            text += " " + self.value_name
        return text^

    def check(self, value: String) raises:
        """Raises unless this is a value that the option can have."""
        if self.kind == _INTEGER:
            var number: Int
            try:
                number = Int(value)
            except:
                raise self._error(String(t"an integer {self._range()}"), value)
            if Float64(number) < self.minimum or Float64(number) > self.maximum:
                raise self._error(String(t"an integer {self._range()}"), value)
        elif self.kind == _NUMBER:
            var number: Float64
            try:
                number = Float64(value)
            except:
                raise self._error(String(t"a number {self._range()}"), value)
            # Written so that NaN is refused as well.
            if not (self.minimum <= number <= self.maximum):
                raise self._error(String(t"a number {self._range()}"), value)
        elif self.kind == _CHOICE:
            for choice in self.value_name.split("|"):
                if choice == value:
                    return
            raise self._error(String(t"one of {self.value_name}"), value)

    def _range(self) -> String:
        var largest = Float64(Int32.MAX) if self.kind == _INTEGER else _LARGEST
        if self.maximum >= largest:
            return String(t"of at least {_plain(self.minimum)}")
        return String(t"from {_plain(self.minimum)} to {_plain(self.maximum)}")

    def _error(self, expected: String, found: String) -> Error:
        return Error(t"--{self.name}: expected {expected}, got '{found}'")


struct Arguments(Movable):
    """The options of a program and the values that they have been given."""

    var program: String
    var summary: String
    """What the program does, for the top of the help."""
    var options: List[Option]
    var _values: List[String]
    var _given: List[Bool]

    def __init__(out self, program: String, summary: String, var options: List[Option]):
        """Starts with every option at its default."""
        self.program = program
        self.summary = summary
        self._values = List[String](capacity=len(options))
        self._given = List[Bool](length=len(options), fill=False)
        for ref option in options:
            self._values.append(option.default)
        self.options = options^

    def parse_command_line(mut self):
        """Parses what the program was called with.

        `-h` and `--help` print the help and end the program with status 0, a mistake prints what was wrong on stderr
        and ends it with status 2.
        """
        var words = List[String]()
        for i in range(1, len(argv())):
            words.append(String(argv()[i]))
        if "-h" in words or "--help" in words:
            print(self.help(), end="", flush=True)
            exit(0)
        try:
            self.parse(words)
        except error:
            self.fail(String(error))

    def fail(self, message: String):
        """Ends the program with status 2 and a message about its flags."""
        print(t"{self.program}: {message}\n`{self.program} --help` lists the flags", file=stderr)
        exit(2)

    def parse(mut self, words: List[String]) raises:
        """Takes `-b 4`, `--batch-size 4` and `--batch-size=4`; of repeated flags the last counts.

        Raises:
            If a flag is unknown, a value is missing, or one is not of the kind that its option takes.
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
            if option.kind == _SWITCH:
                if value:
                    raise Error(t"--{option.name}: expected no value, got '{value.value()}'")
                value = String("1")
            elif not value:
                if i == len(words) or self._find(words[i]) >= 0:
                    raise Error(t"{flag}: expected a value ({option.flags().strip()}), got none")
                value = words[i]
                i += 1
            self._assign(index, value.value())

    def set(mut self, name: String, value: String) raises:
        """Gives an option a value, as its flag would.

        Raises:
            If the value is not of the kind that the option takes.
        """
        self._assign(self._index(name), value)

    def given(self, name: String) raises -> Bool:
        """Tells whether an option has been given a value."""
        return self._given[self._index(name)]

    def text(self, name: String) raises -> String:
        """Returns the value of any option as it was written."""
        return self._values[self._index(name)]

    def int(self, name: String) raises -> Int:
        """Returns the value of an integer option."""
        return Int(self.text(name))

    def float(self, name: String) raises -> Float64:
        """Returns the value of a number option."""
        return Float64(self.text(name))

    def bool(self, name: String) raises -> Bool:
        """Tells whether a switch was there, or an integer option is not 0."""
        return self.int(name) != 0

    def help(self) -> String:
        """Writes the text of `--help`."""
        var width = 0
        for ref option in self.options:
            width = max(width, option.flags().byte_length())
        var text = String(t"usage: {self.program} [flags]\n\n{self.summary}\n\n")
        for ref option in self.options:
            var note = String()
            if option.kind != _SWITCH:
                note = String(t" (default: {_or_none(option.default)})")
            text += String(t"  {option.flags().ascii_ljust(width)}  {option.meaning}{note}\n")
        text += String(t"  {String(" -h --help").ascii_ljust(width)}  this text\n")
        return text^

    def settings(self) -> List[Tuple[String, String]]:
        """Lists every option and its value, for printing with `report.aligned`."""
        var rows = List[Tuple[String, String]]()
        for i in range(len(self.options)):
            rows.append((self.options[i].name, _or_none(self._values[i])))
        return rows^

    def _assign(mut self, index: Int, value: String) raises:
        self.options[index].check(value)
        self._values[index] = value
        self._given[index] = True

    def _index(self, name: String) raises -> Int:
        for i in range(len(self.options)):
            if self.options[i].name == name:
                return i
        raise Error(t"arguments: {self.program} declares no option --{name}")

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
        var nearest = String("-h")
        var smallest = _distance(word, "--help")
        if smallest > 0:
            nearest = "--help"
        for ref option in self.options:
            for candidate in ["-" + option.letter, "--" + option.name]:
                if candidate == "-":
                    continue
                var distance = _distance(word, candidate)
                if distance < smallest:
                    smallest = distance
                    nearest = candidate
        return String(t"unknown flag {word}; did you mean {nearest}?")


def _plain(number: Float64) -> String:
    return String(Int(number)) if Float64(Int(number)) == number else String(number)


def _or_none(value: String) -> String:
    return value if value.byte_length() > 0 else "none"


def _distance(word: String, flag: String) -> Int:
    """Counts what has to change to make a flag of a word: less for a wrong case, dash or ending than for another letter.

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
    if _folded(a) == _folded(b):
        return 1
    return 4


def _folded(c: UInt8) -> UInt8:
    if c == UInt8(ord("_")):
        return UInt8(ord("-"))
    return c + 32 if UInt8(ord("A")) <= c <= UInt8(ord("Z")) else c
