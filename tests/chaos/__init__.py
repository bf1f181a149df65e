"""The chaos harness: real processes, killed, stopped and cut off at random moments, and a judge of what came of it.

site        the stack under test                generator   what a trial does, drawn from a seed
proxy       TCP that can be held or cut         nemesis     the moments and the blows
client      submits through outages             checker     the invariants over database, store and event log
kills, zombies, redis: three sorts of trials    mutants     the code broken one way at a time, and who notices
schedules   interleavings that chance would need hundreds of trials for
"""
