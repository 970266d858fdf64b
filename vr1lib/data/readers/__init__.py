"""One reader for each public data set: its files as a stream of rows, a row as a Problem.

A reader knows its data set's traps and nothing else; finding the files and checking the Problems is `sources.py`.
"""
