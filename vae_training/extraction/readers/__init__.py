"""One reader for each kind of recording, and how recordings are found."""
