"""Django: a backend for its tasks framework, ``manage.py dejq_worker``, and the schema made by ``manage.py migrate``.

For Django 6, or 5.2 with the backport ``django-tasks``. Put ``"dejq.contrib.django"`` into INSTALLED_APPS, and name
``"dejq.contrib.django.backend.DejqBackend"`` in TASKS. docs/frameworks.md has it all.
"""
