"""Checks of what users bring: `json_lines` finds types that show late, `row_check` rows that nothing can read."""
