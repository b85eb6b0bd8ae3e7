"""What runs have left, read again: compared, reported and exported. Nothing is compiled here."""
