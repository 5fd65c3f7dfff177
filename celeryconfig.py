"""Every Celery and RedBeat setting of worker_scheduler, each with its reason.

`worker_scheduler/celery_app.py` loads this very file by its path, so that a `celeryconfig.py` of
somebody else in the current folder is never taken for it. What differs between deployments comes
from the environment, through `worker_scheduler.settings`.
"""

import ssl

from kombu import Queue

from worker_scheduler.settings import load
from worker_scheduler.urls import without_credentials

_settings = load()

# --- messages -------------------------------------------------------------------------------------
# JSON only: a pickled message could run anything it likes in a worker.
task_serializer = "json"
accept_content = ["json"]
result_accept_content = ["json"]
# No result backend: Postgres holds every fact, and a group with a Redis backend would do two more
# round trips a task.
result_backend = None
task_ignore_result = True
# Without expiring results Celery adds no `celery.backend_cleanup` to the beat schedule.
result_expires = None

# --- queues ---------------------------------------------------------------------------------------
# In the order of their urgency; see queue_order_strategy. A tick never waits behind jobs, the daily
# run never behind a backfill.
task_queues = [
    Queue("scheduler", routing_key="scheduler"),
    Queue("daily", routing_key="daily"),
    Queue("backfill", routing_key="backfill"),
]
task_default_queue = "scheduler"
task_default_routing_key = "scheduler"
# Jobs are published with their queue; this is for a `sync_user` that somebody calls by hand.
task_routes = {"sync_user": {"queue": "daily"}}

# --- broker ---------------------------------------------------------------------------------------
# Celery itself gives the variable CELERY_BROKER_URL precedence over this line.
broker_url = _settings.broker_url
broker_connection_retry_on_startup = True  # a worker may start before its broker
broker_transport_options: dict[str, object] = {}
if broker_url.startswith(("amqp", "pyamqp")):
    # RabbitMQ answers for each message. Without that, what stands in a socket's buffer when a
    # connection is cut is lost, and nobody is told.
    broker_transport_options = {"confirm_publish": True}
if _settings.broker_is_redis:
    broker_transport_options = {
        # A worker asks the queues in their order instead of in turns.
        "queue_order_strategy": "priority",
        # Seconds after which a message that a dead worker held is delivered again, looked for each
        # 10 s. To a job that takes longer this does nothing: its second delivery finds it claimed.
        "visibility_timeout": _settings.visibility_timeout_seconds,
        "unacked_restore_throttle": 1,  # at each look; else at each tenth
        # One worker looks at a time. One that dies over it must not stop the others for 300 s.
        "unacked_mutex_expire": 10,
        # A stalled or vanished Redis is an error after this many seconds, not a hang for ever.
        "socket_timeout": 15,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "global_keyprefix": _settings.redis_key_prefix,
        # A message's body is JSON text already; kombu's base64 would make it a third larger.
        "body_encoding": "utf-8",
    }
    # kombu leaves the certificate of a bare `rediss://` unverified. Only then: what the URL says
    # about it, it says itself.
    if "ssl_cert_reqs=required" in broker_url:
        broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}

# --- workers --------------------------------------------------------------------------------------
# A message is acknowledged when its task is over, so that a worker that dies gives it back. The claim
# in Postgres makes the second delivery of a job that went on harmless.
task_acks_late = True
task_acks_on_failure = True
task_acks_on_timeout = True
# One task at a time a process, the rest stay in the queue for whoever is free.
worker_prefetch_multiplier = 1
worker_disable_prefetch = _settings.broker_is_redis  # only its transport knows it
# A lost connection to the broker is no reason to stop a job: it finishes by its claim.
worker_cancel_long_running_tasks_on_connection_loss = False
# Platforms kill 30 s after SIGTERM. With REMAP_SIGTERM=SIGQUIT a worker uses 20 of them to finish,
# then hands its messages back.
worker_soft_shutdown_timeout = 20.0

# --- time -----------------------------------------------------------------------------------------
enable_utc = True  # what is stored and sent is UTC
timezone = _settings.scheduler_timezone  # only for reading DAILY_TICK_CRON

# --- beat -----------------------------------------------------------------------------------------
beat_scheduler = "redbeat.RedBeatScheduler"
# Named, since RedBeat's fallback to the broker's URL ends with its 2.5, and the broker may be another.
# Without its password, since `celery report` and `celery inspect conf` print it; what they print of
# the options they mask.
redbeat_redis_url, _credentials = without_credentials(_settings.redis_url.get_secret_value())
redbeat_key_prefix = f"{_settings.redis_key_prefix}worker_scheduler:redbeat:"
redbeat_redis_options = {
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    # Seconds for which Beat tries again before it gives up and leaves the rest to its supervisor.
    "retry_period": 60,
    **_credentials,
}
# Beat extends its lock at least each 30 s, and whoever waits for it asks as often: after a killed Beat
# the next one rings 120 + 30 s later at most. The defaults (300 s and 1,500 s) would make that half an
# hour. Longer than 30 + 60 s, so that a Beat whose Redis was away for a minute still holds its lock.
beat_max_loop_interval = 30
redbeat_lock_timeout = 120
