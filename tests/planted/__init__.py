"""Bugs that broke public projects, planted one at a time: does the suite catch them?"""
