"""``manage.py dejq_worker``."""
