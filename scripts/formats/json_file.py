"""JSON files that exports write. Those that they read: data/prepare/json_objects.py."""
import json
import os


def write_json(directory, name, content):
    with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
