"""`python -m tests.attacks`: makes all attacks in every setting and tier, and prints the matrix as Markdown."""

import sys

from tests.attacks.matrix import Matrix, table


def main() -> None:
    """Prints the table."""
    sys.stdout.write(table(Matrix()) + "\n")


if __name__ == "__main__":
    main()
