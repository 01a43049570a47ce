"""Self-service menus: versioned trees, callers' sessions, own and predicted short cuts, trees rebuilt from
their use.
"""
