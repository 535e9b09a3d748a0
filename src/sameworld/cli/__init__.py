"""Parse, call the library, print."""
