"""Says how it was started; makes no ResNet. With "raise" it fails, with "exit N" it exits so."""

import atexit
import json
import sys
from pathlib import Path

import helper_beside


def fail():
    raise RuntimeError("a mistake of the script's own")


def at_the_end():
    print(f"at the end: {__name__}, {sys.modules['__main__'] is not None}, {fail.__name__}")


if __name__ == "__main__":
    atexit.register(at_the_end)
    print(
        json.dumps(
            {
                "argv": sys.argv[1:],
                "argv0": Path(sys.argv[0]).name,
                "file": __file__,
                "main": sys.modules["__main__"].fail is fail,
                "helper": helper_beside.WORD,
                "annotations": fail.__annotations__,
            }
        )
    )
    if sys.argv[1:2] == ["raise"]:
        fail()
    if sys.argv[1:2] == ["exit"]:
        sys.exit(int(sys.argv[2]))
