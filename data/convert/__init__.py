"""Other annotation formats to COCO, and one set into splits: `python -m data.convert --help`."""
