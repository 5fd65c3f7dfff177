"""Every Celery and RedBeat setting of worker_scheduler, each with its reason.

`worker_scheduler/celery_app.py` loads this file by its path, so that another application's
`celeryconfig.py` in the current folder is not loaded instead. A wheel has it inside the package. What
differs between deployments comes from environment variables, through `worker_scheduler.config.settings`.
"""

import ssl

from kombu import Queue

from worker_scheduler.config.settings import load
from worker_scheduler.config.urls import without_credentials

_settings = load()

# --- messages -------------------------------------------------------------------------------------
# JSON only: a pickled message could run any code in a worker.
task_serializer = "json"
accept_content = ["json"]
result_accept_content = ["json"]
# No result backend: Postgres holds every fact, and a group with a Redis backend would need two more
# round trips per task.
result_backend = None
task_ignore_result = True
# Without expiring results Celery adds no `celery.backend_cleanup` to the beat schedule.
result_expires = None

# --- queues ---------------------------------------------------------------------------------------
# The most urgent first; see queue_order_strategy. A tick never waits behind jobs, and the daily run
# never waits behind a backfill.
task_queues = [
    Queue("scheduler", routing_key="scheduler"),
    Queue("daily", routing_key="daily"),
    Queue("backfill", routing_key="backfill"),
]
task_default_queue = "scheduler"
task_default_routing_key = "scheduler"
# Jobs are published with their queue; this route is for a `sync_user` that somebody calls by hand.
task_routes = {"sync_user": {"queue": "daily"}}

# --- broker ---------------------------------------------------------------------------------------
# As it was checked and normalised; checked_app.py sees to it that Celery does not read the variable itself.
broker_url = _settings.broker_url
broker_connection_retry_on_startup = True  # a worker may start before its broker
broker_transport_options: dict[str, object] = {}
if broker_url.startswith(("amqp", "pyamqp")):
    # RabbitMQ confirms each message. Without that, the messages in a socket's buffer are lost when the
    # connection is cut, and the publisher is not told.
    broker_transport_options = {"confirm_publish": True}
    # RabbitMQ closes the channel of a message that is unacknowledged for longer than its consumer_timeout
    # (30 minutes). The worker opens another one instead of ending, and its job goes on.
    broker_channel_error_retry = True
if _settings.broker_is_redis:
    broker_transport_options = {
        # A worker asks the queues in their order, not in turn.
        "queue_order_strategy": "priority",
        # A message that a dead worker held is delivered again after this many seconds; workers look for
        # such messages every 10 s. If a job takes longer than this, its message is delivered a second
        # time, and that delivery does nothing because the job is claimed.
        "visibility_timeout": _settings.visibility_timeout_seconds,
        "unacked_restore_throttle": 1,  # restore at every look; otherwise at every tenth
        # One worker looks at a time, under a lock. If it dies, the lock must not block the others for
        # kombu's 300 s.
        "unacked_mutex_expire": 10,
        # If Redis stalls or vanishes, the call fails after this many seconds instead of hanging for ever.
        "socket_timeout": 15,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "global_keyprefix": _settings.redis_key_prefix,
        # A message's body is JSON text already; kombu's base64 would make it a third larger.
        "body_encoding": "utf-8",
    }
    # kombu does not verify the server's certificate for a bare `rediss://`. config/urls.py writes
    # ssl_cert_reqs=required into every such URL that does not ask for less.
    if "ssl_cert_reqs=required" in broker_url:
        broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}

# --- workers --------------------------------------------------------------------------------------
# A message that cannot be read is set aside; Celery's own consumer would end the worker.
worker_consumer = "worker_scheduler.intake.consumer:Consumer"
# A message is acknowledged when its task has ended, so that the message of a dead worker is delivered
# again. If the first worker did go on, the claim in Postgres makes the second delivery harmless.
task_acks_late = True
task_acks_on_failure = True
task_acks_on_timeout = True
# Each process takes one task at a time; the rest stay in the queue for the next free process.
worker_prefetch_multiplier = 1
worker_disable_prefetch = _settings.broker_is_redis  # only the Redis transport has this option
# A lost connection to the broker is no reason to stop a job: its end is recorded in Postgres.
worker_cancel_long_running_tasks_on_connection_loss = False
# A program that may publish to the broker's pidbox can stop a worker, or make it discard tasks.
worker_enable_remote_control = _settings.worker_remote_control
# Platforms kill a process 30 s after SIGTERM. With REMAP_SIGTERM=SIGQUIT a worker has 20 s to finish
# its jobs, then it hands its messages back.
worker_soft_shutdown_timeout = 20.0

# --- time -----------------------------------------------------------------------------------------
enable_utc = True  # what is stored and sent is UTC
timezone = _settings.scheduler_timezone  # only for reading DAILY_TICK_CRON

# --- beat -----------------------------------------------------------------------------------------
# RedBeat's scheduler, which here outlives an outage of Redis.
beat_scheduler = "worker_scheduler.beat:Scheduler"
# Set, because RedBeat 2.5 drops its fallback to the broker's URL, and the broker may be another server.
# The password is not in it, since `celery report` and `celery inspect conf` print the URL; it is
# in the options below, where these commands mask it.
redbeat_redis_url, _credentials = without_credentials(_settings.redis_url.get_secret_value())
redbeat_key_prefix = f"{_settings.redis_key_prefix}worker_scheduler:redbeat:"
redbeat_redis_options = {
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    **_credentials,
}
# Beat extends its lock at least every 30 s, and a second Beat that waits for the lock asks as often: after
# a Beat is killed, the next one triggers within 120 + 30 s. With the defaults (300 s and 1,500 s) that
# could take half an hour. The lock lasts longer than 30 + 60 s, so that a Beat that could not reach Redis
# for a minute still holds it; after a longer outage, or when Redis has lost its data, the first takes it.
beat_max_loop_interval = 30
redbeat_lock_timeout = 120
