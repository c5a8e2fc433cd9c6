"""What an auditor asks of a store: is it whole, who made what of what, what changed, can it be
repeated.
"""
