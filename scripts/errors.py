"""The user's mistakes."""


class UserError(Exception):
    """Something the user has to know: printed in one line, exit code 2."""
