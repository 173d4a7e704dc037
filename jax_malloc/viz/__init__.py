"""Pictures of a plan: matplotlib, a self-contained HTML report, a Perfetto trace.

`tables` turns a plan into rows of stays, copies and ops; the rest only draws them. What
draws is imported when it is asked for, and belongs to the extra `viz`.
"""
