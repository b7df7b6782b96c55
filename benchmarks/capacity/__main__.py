"""`python -m benchmarks.capacity`: see README.md beside this file."""

from benchmarks.capacity.run import main

main()
