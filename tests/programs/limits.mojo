"""Prints what this process may use: threads, bytes of memory, and the cores that some processors are part of.

Usage: limits ROOT CPUS, the root of the file system ("" for this machine's) and processors like 0-3,8. Run by
tests/test_limits.py.
"""

from std.sys import argv

from llm.base.cgroup import available_memory
from llm.cpu.threads.cores import available_threads, num_cores, numbers_of_ranges


def main():
    var root = String(argv()[1])
    var cores = num_cores(numbers_of_ranges(String(argv()[2])), root)
    print(available_threads(root), available_memory(root), cores)
