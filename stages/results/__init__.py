"""What scores say: runs read again, statistics over seeds, novelty beside visits, the table of metrics."""
