"""JSON from files that anyone may have written."""

import json


def read_json_text(text: str | bytes) -> object:
    """Parse JSON.

    Args:
        text: Bytes are UTF-8.

    Raises:
        ValueError: With a short reason, whatever is wrong with it: Python's own parser has limits
            of its own, for nesting and for the digits of an integer.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is no text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError:
        raise ValueError("it holds a number of too many digits") from None
