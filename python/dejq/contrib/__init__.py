"""What fits dejq to other libraries. A module needs the library that it is named after, and nothing else needs it."""
