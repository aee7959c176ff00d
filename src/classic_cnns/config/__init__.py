"""From the command line to one checked config, with all error messages.

Torch takes seconds to import and is not imported here, so that help and errors appear at once.
"""
