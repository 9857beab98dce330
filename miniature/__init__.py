"""The miniature of the whole system: trained on the Foley world, scored, and asked questions.

`python -m miniature -h` lists what it does; `docs/miniature.md` holds the results.
"""
