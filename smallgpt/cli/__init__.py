"""The command lines: one module a group of commands.

All of them come through here first, where it is seen whether this Python can run them. An older one
must get as far: here and in `smallgpt/__init__.py`, nothing is newer than Python 3.8.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    here = "{} is Python {}.{}".format(sys.executable, *sys.version_info)
    advice = "type the name of a newer one, such as python3.12"
    print(f"error: Small GPT needs Python 3.11 or newer, and {here}: {advice}", file=sys.stderr)
    sys.exit(2)

from smallgpt.utils.errors import user_errors

with user_errors():
    import smallgpt.cli.main  # noqa: F401  (and every package that each command needs)
