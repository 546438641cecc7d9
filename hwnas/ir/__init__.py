"""The intermediate representation: what a network is. Standard library only; it knows no framework and no file format."""
