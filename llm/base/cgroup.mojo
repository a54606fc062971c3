"""What Linux lets this process use of the machine: its control group (cgroup) may have a quota of processor time and a limit
of memory, as containers and batch systems set them.

Groups form a tree, of version 2, or one for each controller, of version 1; a group's limits hold for all below it. Each
function takes the root of the file system, so that tests can make up another machine.
"""

from std.ffi import external_call

from llm.base.files import read_system_text
from llm.base.numbers import parse_integer

comptime _SC_PAGESIZE = Int32(30)
comptime _SC_PHYS_PAGES = Int32(85)


def cpu_quota(root: String = "") -> Optional[Float64]:
    """Returns how many processors' time the process may use at most, if that is limited."""
    var least = Optional[Float64](None)
    for ref folder in _groups(root, "cpu"):
        # Version 2: "QUOTA PERIOD" or "max PERIOD", in microseconds; version 1 has them in two files, -1 for no quota.
        var words = _words(folder + "/cpu.max")
        if len(words) != 2:
            words = _words(folder + "/cpu.cfs_quota_us")
            words.extend(_words(folder + "/cpu.cfs_period_us"))
        if len(words) != 2:
            continue
        var quota = parse_integer(words[0]).or_else(-1)
        var period = parse_integer(words[1]).or_else(-1)
        if quota > 0 and period > 0:
            var processors = Float64(quota) / Float64(period)
            least = min(least.or_else(processors), processors)
    return least


def available_memory(root: String = "") -> Int:
    """Returns the bytes of memory that the process may use: the machine's, or less if its group is limited."""
    var least = external_call["sysconf", Int](_SC_PHYS_PAGES) * external_call["sysconf", Int](_SC_PAGESIZE)
    for ref folder in _groups(root, "memory"):
        for name in ["/memory.max", "/memory.limit_in_bytes"]:
            var words = _words(folder + name)
            # "max", and version 1's 9223372036854771712, are no numbers that can be read here.
            if len(words) == 1:
                least = min(least, parse_integer(words[0]).or_else(least))
    return least


def _words(path: String) -> List[String]:
    """Returns the words of a file; none if there is no such file."""
    var words = List[String]()
    for word in read_system_text(path).or_else("").split():
        words.append(String(word))
    return words^


def _groups(root: String, controller: String) -> List[String]:
    """Lists the folders of this process's group and of those above it, in the trees that may have the controller."""
    var folders = List[String]()
    var mounts = read_system_text(root + "/proc/self/mountinfo").or_else("")
    # A line is NUMBER:CONTROLLERS:GROUP; version 2 names no controllers.
    for line in read_system_text(root + "/proc/self/cgroup").or_else("").splitlines():
        var fields = line.split(":", 2)
        if len(fields) < 3 or not (not fields[1] or _has(fields[1], controller)):
            continue
        for mount in mounts.splitlines():
            # ... ROOT FOLDER ... - TYPE SOURCE OPTIONS: at FOLDER appears the tree from the group ROOT on.
            var halves = mount.split(" - ", 1)
            if len(halves) < 2:
                continue
            var place = halves[0].split(" ")
            var kind = halves[1].split(" ")
            if len(place) < 5 or len(kind) < 3:
                continue
            var is_version_2 = kind[0] == "cgroup2" and not fields[1]
            if is_version_2 or (kind[0] == "cgroup" and _has(kind[2], controller) and Bool(fields[1])):
                _add_folders(folders, root + String(place[4]), _below(String(fields[2]), String(place[3])))
    return folders^


def _has(list: StringSlice, name: String) -> Bool:
    for item in list.split(","):
        if item == name:
            return True
    return False


def _below(group: String, mounted: String) -> String:
    """Returns the rest of a group's path below the group that is mounted; nothing if it is that one or not below it."""
    var top = String(mounted.rstrip("/"))
    # "/.." leads out of what a container sees.
    if not group.startswith(top + "/") or group.startswith("/.."):
        return ""
    return String(group.removeprefix(top).rstrip("/"))


def _add_folders(mut folders: List[String], mount: String, below: String):
    """Adds the folder of a group and those above it, up to where the tree is mounted."""
    var path = String()
    folders.append(mount)
    for name in below.split("/"):
        if name:
            path += "/" + String(name)
            folders.append(mount + path)
