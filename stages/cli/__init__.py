"""What a run is told: arguments, settings files, signals and other processes; and what it says on the terminal."""
