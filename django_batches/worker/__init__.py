"""`manage.py batchworker`: a supervisor that forks executors, the coordinator and RQ's maintenance."""
