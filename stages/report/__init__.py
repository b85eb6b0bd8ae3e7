"""What scores say: statistics over seeds, runs read again and compared, tables."""
