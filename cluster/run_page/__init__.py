"""The page of one run: `python -m cluster.report RUN_DIR --serve`, or `--page` as files that open from disk.

    journal/events.jsonl ──lines──▶ RunStore (SQLite) ──┐
    metrics.jsonl ────────────────▶ RunMetrics ─────────┼──▶ views: plain JSON ──▶ server, or files ──▶ assets/*.js
    config.json, scorecard.json, pairs/ ────────────────┘

Nothing is kept beside the run: the index is made when the page is opened, and follows the run while it goes on. All
text of data and models stays text: it travels as JSON, and the page sets it as text, never as markup.
"""
