"""The one error type that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: one sentence that names the file, key or value, and the way out.

    The command line prints it as one line and exits with status 2; anything else is a defect of ours and
    keeps its traceback.
    """
