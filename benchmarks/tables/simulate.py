"""Other policies on one trace, by libcachesim: run as a program of that package's own environment.

Rule of this file: nothing imports it. libcachesim is under the GPL; it is asked by a process of its own, which gets
64-bit numbers on its standard input and prints a JSON object of hits. Objects count one each.

    python simulate.py CAPACITY POLICY... < numbers
"""

import array
import json
import sys

import libcachesim

NEVER = 2**62
"""Asked for again after everything else: what the clairvoyant policy gives up first."""


def main() -> None:
    numbers = array.array("q", sys.stdin.buffer.read())
    following = array.array("q", [NEVER]) * len(numbers)
    seen: dict[int, int] = {}
    for index in range(len(numbers) - 1, -1, -1):
        following[index] = seen.get(numbers[index], NEVER)
        seen[numbers[index]] = index
    request = libcachesim.Request()
    request.obj_size = 1
    found = {}
    for name in sys.argv[2:]:
        cache = getattr(libcachesim, name)(cache_size=int(sys.argv[1]), hashpower=18)
        hits = 0
        for number, again in zip(numbers, following, strict=True):
            request.obj_id = number + 1
            request.next_access_vtime = again
            hits += cache.get(request)
        found[name] = hits
    print(json.dumps(found))


main()
