class UserError(Exception):
    """A mistake or a circumstance that the user can mend, told in one line; no traceback."""


class JobFailed(Exception):
    """What Hydra's sweepers get for a job without a result."""
