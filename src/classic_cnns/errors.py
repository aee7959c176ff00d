class UserError(Exception):
    """A mistake or a circumstance that the user can mend, told in one line; no traceback."""
