"""Chinese translations of messages that carry no code: errors, what commands print, their help. Start with `catalogue.py`.

The English sentence is written where it is raised or printed; f"no worker matches {name}" has the key "no worker
matches {}". commands.py, deploy.py, fleet.py and manager.py hold the Chinese of each key. A sentence is translated at the
edge, where it is shown: by `console.language` for commands, by `http_io` for the API.
"""
