"""`python -m sparsefeed.native`: build the library; `make native` does this."""

import sys

from sparsefeed.errors import ToolError
from sparsefeed.native import library

if __name__ == "__main__":
    try:
        sys.stdout.write(f"{library.build()}\n")
    except ToolError as error:
        sys.exit(f"ToolError: {error}")
