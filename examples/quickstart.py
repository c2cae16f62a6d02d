"""What a dictionary that lives in a folder can do: ``python examples/quickstart.py [FOLDER]``.

Without an argument it uses a temporary folder, and removes it at the end. With
``AzureDictionary(CONNECTION_STRING, "mycontainer")`` in place of the `LocalDictionary`, all of it
happens in the cloud.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

import numpy as np
import pandas as pd

from remotedict import LocalDictionary

OTHER_PROCESS = """
import os, sys
from remotedict import LocalDictionary

d = LocalDictionary(sys.argv[1], "quickstart")
print(f"   process {os.getpid()} reads", d["greeting"], "and", d["array"].shape)
d["from the other process"] = os.getpid()
"""


def main(folder: str) -> None:
    """Show one thing after the other."""
    d = LocalDictionary(folder, "quickstart")
    d.clear()
    show("An empty dictionary", d)

    d["greeting"] = "hello"
    d["array"] = np.random.default_rng(0).normal(size=(1000, 3))
    d["table"] = pd.DataFrame({"x": [1, 2, 3], "y": [1.0, 4.0, 9.0]})
    d["function"] = lambda x: x + 1
    show(
        "Values of all kinds, read back", d["greeting"], d["array"].mean(axis=0), d["function"](41)
    )
    show("A table", d["table"])

    d[["a", "b", "c"]] = 1, 2, 3
    show("Three keys written at once, two of them read at once", d[["a", "c"]])
    del d["a", "b"]
    show("Two of them deleted at once; it is a dict", list(d), len(d), "a" in d, d.get("a", "gone"))

    show("Where each value is: small ones are in the index itself", d.index)

    with d.lock("c", timeout=10):
        d["c"] += 1
        show("Locked: nobody else can write this key meanwhile", d.locks["c"])
    show("What c became under the lock", d["c"])

    second = LocalDictionary(folder, "quickstart")
    second["c"] = "written through another handle"
    show("A second handle writes, the first one sees it", d["c"])

    show("Another process does so as well")
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, folder], check=True)  # noqa: S603
    show("What it left here", d["from the other process"])

    second.close()
    d.close()


def show(title: str, *values: object) -> None:
    """Print a title, and values below it."""
    print(f"-- {title}")
    for value in values:
        print("   " + str(value).replace("\n", "\n   "))
    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
