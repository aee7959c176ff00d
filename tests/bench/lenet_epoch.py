"""One training epoch of LeNet-5: ours with all that is on by default, beside what others would do.

Every way trains the same net with the same loss, optimizer and schedule on the same 55,000 images,
in turn in one process, so that a change of the machine's speed meets them all.
"""
