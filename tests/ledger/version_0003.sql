-- A ledger of version 0003 whose table of jobs was created whole and divided into months later;
-- runs, batches and jobs in several states. Taken with pg_dump --inserts; no COPY, no roles.

SELECT pg_catalog.set_config('search_path', '', false);

CREATE FUNCTION public.sync_jobs_add_month(name text, first_run_id uuid, next_run_id uuid) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    SET lock_timeout TO '200ms'
    AS $_$
BEGIN
    IF to_regclass(name) IS NOT NULL OR name !~ '^sync_jobs_[0-9]{4}_[0-9]{2}$'
        OR NOT EXISTS (SELECT FROM pg_class WHERE oid = 'sync_jobs'::regclass AND relkind = 'p') THEN
        RETURN false;
    END IF;
    -- By the index, and without a lock that anybody waits for: attaching would read the whole default
    -- partition only to find this.
    IF EXISTS (SELECT FROM sync_jobs_monthless WHERE run_id >= first_run_id AND run_id < next_run_id) THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(x'7761766500'::bigint);
    -- By a query, whose snapshot is younger than the lock; to_regclass() would repeat its answer.
    IF EXISTS (SELECT FROM pg_class c
               WHERE c.relname = name AND c.relnamespace = current_schema()::regnamespace) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE sync_jobs INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format('ALTER TABLE %I ADD PRIMARY KEY (job_id)', name);
    EXECUTE format('ALTER TABLE sync_jobs ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        name, first_run_id, next_run_id);
    RETURN true;
EXCEPTION
    WHEN check_violation THEN
        -- A run of that month has come into the default partition since we looked: it is the month's place.
        RETURN false;
    WHEN lock_not_available THEN
        RETURN NULL;
END $_$;

CREATE TABLE public.sync_batches (
    run_id uuid NOT NULL,
    number integer NOT NULL,
    first_user_id uuid NOT NULL,
    last_user_id uuid NOT NULL,
    first_job_id uuid NOT NULL,
    last_job_id uuid NOT NULL,
    jobs integer NOT NULL,
    group_id uuid NOT NULL,
    generation integer DEFAULT 0 NOT NULL,
    claimed_by uuid,
    claimed_until timestamp with time zone,
    enqueued_at timestamp with time zone,
    broker_epoch uuid,
    CONSTRAINT sync_batches_jobs_check CHECK ((jobs > 0))
);

CREATE TABLE public.sync_jobs (
    job_id uuid NOT NULL,
    user_id uuid NOT NULL,
    github_login text,
    status text DEFAULT 'PENDING'::text NOT NULL,
    error_message text,
    backfill_days integer,
    triggered_by text NOT NULL,
    partition_key text NOT NULL,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    run_id uuid,
    attempt smallint DEFAULT 0 NOT NULL,
    leased_until timestamp with time zone,
    not_before timestamp with time zone,
    republished_in uuid,
    CONSTRAINT sync_jobs_status_check CHECK ((status = ANY (ARRAY['PENDING'::text, 'RUNNING'::text, 'COMPLETED'::text, 'FAILED'::text, 'SKIPPED'::text])))
)
PARTITION BY RANGE (run_id);

CREATE TABLE public.sync_jobs_2026_11 (
    job_id uuid CONSTRAINT sync_jobs_job_id_not_null NOT NULL,
    user_id uuid CONSTRAINT sync_jobs_user_id_not_null NOT NULL,
    github_login text,
    status text DEFAULT 'PENDING'::text CONSTRAINT sync_jobs_status_not_null NOT NULL,
    error_message text,
    backfill_days integer,
    triggered_by text CONSTRAINT sync_jobs_triggered_by_not_null NOT NULL,
    partition_key text CONSTRAINT sync_jobs_partition_key_not_null NOT NULL,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP CONSTRAINT sync_jobs_created_at_not_null NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    run_id uuid,
    attempt smallint DEFAULT 0 CONSTRAINT sync_jobs_attempt_not_null NOT NULL,
    leased_until timestamp with time zone,
    not_before timestamp with time zone,
    republished_in uuid,
    CONSTRAINT sync_jobs_status_check CHECK ((status = ANY (ARRAY['PENDING'::text, 'RUNNING'::text, 'COMPLETED'::text, 'FAILED'::text, 'SKIPPED'::text])))
);

CREATE TABLE public.sync_jobs_monthless (
    job_id uuid CONSTRAINT sync_jobs_job_id_not_null NOT NULL,
    user_id uuid CONSTRAINT sync_jobs_user_id_not_null NOT NULL,
    github_login text,
    status text DEFAULT 'PENDING'::text CONSTRAINT sync_jobs_status_not_null NOT NULL,
    error_message text,
    backfill_days integer,
    triggered_by text CONSTRAINT sync_jobs_triggered_by_not_null NOT NULL,
    partition_key text CONSTRAINT sync_jobs_partition_key_not_null NOT NULL,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP CONSTRAINT sync_jobs_created_at_not_null NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    run_id uuid,
    attempt smallint DEFAULT 0 CONSTRAINT sync_jobs_attempt_not_null NOT NULL,
    leased_until timestamp with time zone,
    not_before timestamp with time zone,
    republished_in uuid,
    CONSTRAINT sync_jobs_status_check CHECK ((status = ANY (ARRAY['PENDING'::text, 'RUNNING'::text, 'COMPLETED'::text, 'FAILED'::text, 'SKIPPED'::text])))
);

CREATE TABLE public.sync_locks (
    lock_id bigint NOT NULL,
    holder uuid NOT NULL,
    partition_key text NOT NULL,
    acquired_at timestamp with time zone NOT NULL,
    leased_until timestamp with time zone NOT NULL
);

CREATE TABLE public.sync_origin (
    since timestamp with time zone NOT NULL,
    cron text,
    timezone text
);

CREATE TABLE public.sync_runs (
    run_id uuid NOT NULL,
    partition_key text NOT NULL,
    kind text NOT NULL,
    triggered_by text NOT NULL,
    requested_by text,
    backfill_days integer,
    selected_user_ids uuid[],
    slot timestamp with time zone,
    state text NOT NULL,
    planned_through uuid,
    leased_until timestamp with time zone,
    jobs bigint DEFAULT 0 NOT NULL,
    batches integer DEFAULT 0 NOT NULL,
    completed bigint,
    failed bigint,
    skipped bigint,
    created_at timestamp with time zone NOT NULL,
    planned_at timestamp with time zone,
    enqueued_at timestamp with time zone,
    finished_at timestamp with time zone,
    jobs_before bigint DEFAULT 0 NOT NULL,
    pruned_at timestamp with time zone,
    CONSTRAINT sync_runs_kind_check CHECK ((kind = ANY (ARRAY['daily'::text, 'backfill'::text]))),
    CONSTRAINT sync_runs_state_check CHECK ((state = ANY (ARRAY['PLANNING'::text, 'DISPATCHING'::text, 'ENQUEUED'::text, 'FINISHED'::text, 'MISSED'::text])))
);

CREATE TABLE public.worker_scheduler_version (
    version_num character varying(32) NOT NULL
);

ALTER TABLE ONLY public.sync_jobs ATTACH PARTITION public.sync_jobs_2026_11 FOR VALUES FROM ('01a19467-e800-0000-0000-000000000000') TO ('01a22ee6-b000-0000-0000-000000000000');

ALTER TABLE ONLY public.sync_jobs ATTACH PARTITION public.sync_jobs_monthless DEFAULT;

INSERT INTO public.sync_batches VALUES
	('01a21dc1-5a31-78a2-b0bd-63573aa91559', 0, '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000004', '01a21dc1-5a4a-7951-8ba7-aa1300000001', '01a21dc1-5a4a-7951-8ba7-aa1300000004', 4, 'df17f7eb-235a-45a1-b40a-9f79bf5d56c9', 0, NULL, NULL, '2026-11-27 16:05:40.596135+00', '0bb1dc20-b7bf-442c-a06a-396b308bccc3'),
	('01a21dc1-5a31-78a2-b0bd-63573aa91559', 1, '00000000-0000-0000-0000-000000000005', '00000000-0000-0000-0000-000000000006', '01a21dc1-5a56-7a5f-8855-369000000001', '01a21dc1-5a56-7a5f-8855-369000000002', 2, 'fbb9406b-4b53-4d8a-8c11-87236b93d4a1', 0, NULL, NULL, '2026-11-27 16:05:40.596135+00', '0bb1dc20-b7bf-442c-a06a-396b308bccc3'),
	('01a21dc1-6755-7ae5-b9b7-a583a76eb62f', 0, '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001', '01a21dc1-6762-788c-bcc5-967d00000001', '01a21dc1-6762-788c-bcc5-967d00000001', 1, 'cd5d1a67-97c1-43d4-b77a-b785626b01eb', 0, NULL, NULL, '2026-11-27 16:05:43.928061+00', '0bb1dc20-b7bf-442c-a06a-396b308bccc3'),
	('171f29c8-4bb2-4ac6-bb96-786a21c1afa0', 0, '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001', '01a21dc1-6d9c-74f9-9d17-177900000001', '01a21dc1-6d9c-74f9-9d17-177900000001', 1, '2b917b73-fa88-49a0-abd5-b16a6af4484c', 0, NULL, NULL, NULL, NULL);

INSERT INTO public.sync_jobs_2026_11 VALUES
	('01a21dc1-5a56-7a5f-8855-369000000002', '00000000-0000-0000-0000-000000000006', 'user-6', 'PENDING', NULL, NULL, 'scheduler.daily', 'daily:2026-11-23', '2026-11-27 16:05:40.566248+00', NULL, NULL, '01a21dc1-5a31-78a2-b0bd-63573aa91559', 0, NULL, NULL, NULL),
	('01a21dc1-6762-788c-bcc5-967d00000001', '00000000-0000-0000-0000-000000000001', 'user-1', 'PENDING', NULL, 7, 'scheduler.backfill', 'backfill:spring', '2026-11-27 16:05:43.906473+00', NULL, NULL, '01a21dc1-6755-7ae5-b9b7-a583a76eb62f', 0, NULL, NULL, NULL),
	('01a21dc1-5a4a-7951-8ba7-aa1300000001', '00000000-0000-0000-0000-000000000001', 'user-1', 'COMPLETED', NULL, NULL, 'scheduler.daily', 'daily:2026-11-23', '2026-11-27 16:05:40.554139+00', '2026-11-27 16:05:45.500678+00', '2026-11-27 16:05:45.500678+00', '01a21dc1-5a31-78a2-b0bd-63573aa91559', 1, NULL, NULL, NULL),
	('01a21dc1-5a4a-7951-8ba7-aa1300000002', '00000000-0000-0000-0000-000000000002', 'user-2', 'FAILED', 'it''s; a \ fault', NULL, 'scheduler.daily', 'daily:2026-11-23', '2026-11-27 16:05:40.554139+00', '2026-11-27 16:05:45.500678+00', '2026-11-27 16:05:45.500678+00', '01a21dc1-5a31-78a2-b0bd-63573aa91559', 1, NULL, NULL, NULL),
	('01a21dc1-5a4a-7951-8ba7-aa1300000003', '00000000-0000-0000-0000-000000000003', 'user-3', 'SKIPPED', NULL, NULL, 'scheduler.daily', 'daily:2026-11-23', '2026-11-27 16:05:40.554139+00', '2026-11-27 16:05:45.500678+00', '2026-11-27 16:05:45.500678+00', '01a21dc1-5a31-78a2-b0bd-63573aa91559', 1, NULL, NULL, NULL),
	('01a21dc1-5a4a-7951-8ba7-aa1300000004', '00000000-0000-0000-0000-000000000004', 'user-4', 'PENDING', 'later', NULL, 'scheduler.daily', 'daily:2026-11-23', '2026-11-27 16:05:40.554139+00', '2026-11-27 16:05:45.500678+00', NULL, '01a21dc1-5a31-78a2-b0bd-63573aa91559', 1, NULL, '2026-11-27 16:06:30.500678+00', NULL),
	('01a21dc1-5a56-7a5f-8855-369000000001', '00000000-0000-0000-0000-000000000005', 'user-5', 'RUNNING', NULL, NULL, 'scheduler.daily', 'daily:2026-11-23', '2026-11-27 16:05:40.566248+00', '2026-11-27 16:05:45.500678+00', NULL, '01a21dc1-5a31-78a2-b0bd-63573aa91559', 1, '2026-11-27 16:06:30.500678+00', NULL, NULL);

INSERT INTO public.sync_jobs_monthless VALUES
	('01a21dc1-6d9c-74f9-9d17-177900000001', '00000000-0000-0000-0000-000000000001', 'user-1', 'PENDING', NULL, NULL, 'scheduler.daily', 'daily:2026-03-12', '2026-11-27 16:05:45.500678+00', NULL, NULL, '171f29c8-4bb2-4ac6-bb96-786a21c1afa0', 0, NULL, NULL, NULL);

INSERT INTO public.sync_locks VALUES
	(512736257281, 'f0cbc611-7b7f-4802-9afb-0de25ab9da79', 'daily:2026-03-12', '2026-11-27 16:05:45.500678+00', '2026-11-27 16:06:30.500678+00');

INSERT INTO public.sync_origin VALUES
	('2026-11-27 16:05:37.090044+00', NULL, NULL);

INSERT INTO public.sync_runs VALUES
	('01a21dc1-5a31-78a2-b0bd-63573aa91559', 'daily:2026-11-23', 'daily', 'scheduler.daily', 'cli operator@host', NULL, NULL, NULL, 'ENQUEUED', '00000000-0000-0000-0000-000000000006', NULL, 6, 2, NULL, NULL, NULL, '2026-11-27 16:05:40.529151+00', '2026-11-27 16:05:40.566248+00', '2026-11-27 16:05:40.596135+00', NULL, 0, NULL),
	('01a21dc1-6755-7ae5-b9b7-a583a76eb62f', 'backfill:spring', 'backfill', 'scheduler.backfill', 'cli operator@host', 7, '{00000000-0000-0000-0000-000000000001}', NULL, 'ENQUEUED', '00000000-0000-0000-0000-000000000001', NULL, 1, 1, NULL, NULL, NULL, '2026-11-27 16:05:43.89379+00', '2026-11-27 16:05:43.906473+00', '2026-11-27 16:05:43.928061+00', NULL, 0, NULL),
	('171f29c8-4bb2-4ac6-bb96-786a21c1afa0', 'daily:2026-03-12', 'daily', 'scheduler.daily', 'test', NULL, NULL, '2026-11-27 16:05:45.500678+00', 'PLANNING', '00000000-0000-0000-0000-000000000001', '2026-11-27 16:06:30.500678+00', 1, 1, NULL, NULL, NULL, '2026-11-27 16:05:45.500678+00', NULL, NULL, NULL, 0, NULL),
	('01a21dc1-6d9c-7c45-861d-dc052cd838ac', 'daily:2026-11-22', 'daily', 'scheduler.daily', 'test', NULL, NULL, '2026-11-27 16:05:45.500678+00', 'MISSED', NULL, NULL, 0, 0, NULL, NULL, NULL, '2026-11-27 16:05:45.500678+00', NULL, NULL, NULL, 0, NULL);

INSERT INTO public.worker_scheduler_version VALUES
	('0003');

ALTER TABLE ONLY public.sync_batches
    ADD CONSTRAINT sync_batches_pkey PRIMARY KEY (run_id, number);

ALTER TABLE ONLY public.sync_jobs_2026_11
    ADD CONSTRAINT sync_jobs_2026_11_pkey PRIMARY KEY (job_id);

ALTER TABLE ONLY public.sync_jobs_monthless
    ADD CONSTRAINT sync_jobs_monthless_pkey PRIMARY KEY (job_id);

ALTER TABLE ONLY public.sync_locks
    ADD CONSTRAINT sync_locks_pkey PRIMARY KEY (lock_id);

ALTER TABLE ONLY public.sync_runs
    ADD CONSTRAINT sync_runs_partition_key_key UNIQUE (partition_key);

ALTER TABLE ONLY public.sync_runs
    ADD CONSTRAINT sync_runs_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY public.worker_scheduler_version
    ADD CONSTRAINT worker_scheduler_version_pkc PRIMARY KEY (version_num);

CREATE INDEX sync_batches_unsent ON public.sync_batches USING btree (run_id, number) WHERE (enqueued_at IS NULL);

CREATE INDEX sync_jobs_running ON ONLY public.sync_jobs USING btree (leased_until) WHERE (leased_until IS NOT NULL);

CREATE INDEX sync_jobs_2026_11_leased_until_idx ON public.sync_jobs_2026_11 USING btree (leased_until) WHERE (leased_until IS NOT NULL);

CREATE INDEX sync_jobs_delayed ON ONLY public.sync_jobs USING btree (not_before) WHERE (not_before IS NOT NULL);

CREATE INDEX sync_jobs_2026_11_not_before_idx ON public.sync_jobs_2026_11 USING btree (not_before) WHERE (not_before IS NOT NULL);

CREATE INDEX sync_jobs_partition ON ONLY public.sync_jobs USING brin (partition_key, created_at) WITH (autosummarize='on');

CREATE INDEX sync_jobs_2026_11_partition_key_created_at_idx ON public.sync_jobs_2026_11 USING brin (partition_key, created_at) WITH (autosummarize='on');

CREATE INDEX sync_jobs_open ON ONLY public.sync_jobs USING btree (run_id, job_id) WHERE (status = ANY (ARRAY['PENDING'::text, 'RUNNING'::text]));

CREATE INDEX sync_jobs_2026_11_run_id_job_id_idx ON public.sync_jobs_2026_11 USING btree (run_id, job_id) WHERE (status = ANY (ARRAY['PENDING'::text, 'RUNNING'::text]));

CREATE INDEX sync_jobs_republished ON ONLY public.sync_jobs USING btree (run_id, republished_in) WHERE ((republished_in IS NOT NULL) AND (status = 'PENDING'::text));

CREATE INDEX sync_jobs_2026_11_run_id_republished_in_idx ON public.sync_jobs_2026_11 USING btree (run_id, republished_in) WHERE ((republished_in IS NOT NULL) AND (status = 'PENDING'::text));

CREATE UNIQUE INDEX sync_jobs_one_job_per_user ON ONLY public.sync_jobs USING btree (run_id, user_id) WHERE (run_id IS NOT NULL);

CREATE UNIQUE INDEX sync_jobs_2026_11_run_id_user_id_idx ON public.sync_jobs_2026_11 USING btree (run_id, user_id) WHERE (run_id IS NOT NULL);

CREATE INDEX sync_jobs_monthless_delayed ON public.sync_jobs_monthless USING btree (not_before) WHERE (not_before IS NOT NULL);

CREATE INDEX sync_jobs_monthless_leased_until_idx ON public.sync_jobs_monthless USING btree (leased_until) WHERE (leased_until IS NOT NULL);

CREATE UNIQUE INDEX sync_jobs_monthless_one_job_per_user ON public.sync_jobs_monthless USING btree (run_id, user_id) WHERE (run_id IS NOT NULL);

CREATE INDEX sync_jobs_monthless_open ON public.sync_jobs_monthless USING btree (run_id, job_id) WHERE (status = ANY (ARRAY['PENDING'::text, 'RUNNING'::text]));

CREATE INDEX sync_jobs_monthless_partition ON public.sync_jobs_monthless USING brin (partition_key, created_at) WITH (autosummarize='on');

CREATE INDEX sync_jobs_monthless_republished ON public.sync_jobs_monthless USING btree (run_id, republished_in) WHERE ((republished_in IS NOT NULL) AND (status = 'PENDING'::text));

ALTER INDEX public.sync_jobs_running ATTACH PARTITION public.sync_jobs_2026_11_leased_until_idx;

ALTER INDEX public.sync_jobs_delayed ATTACH PARTITION public.sync_jobs_2026_11_not_before_idx;

ALTER INDEX public.sync_jobs_partition ATTACH PARTITION public.sync_jobs_2026_11_partition_key_created_at_idx;

ALTER INDEX public.sync_jobs_open ATTACH PARTITION public.sync_jobs_2026_11_run_id_job_id_idx;

ALTER INDEX public.sync_jobs_republished ATTACH PARTITION public.sync_jobs_2026_11_run_id_republished_in_idx;

ALTER INDEX public.sync_jobs_one_job_per_user ATTACH PARTITION public.sync_jobs_2026_11_run_id_user_id_idx;

ALTER INDEX public.sync_jobs_delayed ATTACH PARTITION public.sync_jobs_monthless_delayed;

ALTER INDEX public.sync_jobs_running ATTACH PARTITION public.sync_jobs_monthless_leased_until_idx;

ALTER INDEX public.sync_jobs_one_job_per_user ATTACH PARTITION public.sync_jobs_monthless_one_job_per_user;

ALTER INDEX public.sync_jobs_open ATTACH PARTITION public.sync_jobs_monthless_open;

ALTER INDEX public.sync_jobs_partition ATTACH PARTITION public.sync_jobs_monthless_partition;

ALTER INDEX public.sync_jobs_republished ATTACH PARTITION public.sync_jobs_monthless_republished;

ALTER TABLE ONLY public.sync_batches
    ADD CONSTRAINT sync_batches_run_id_fkey FOREIGN KEY (run_id) REFERENCES public.sync_runs(run_id);

REVOKE ALL ON FUNCTION public.sync_jobs_add_month(name text, first_run_id uuid, next_run_id uuid) FROM PUBLIC;

-- A pooler gives the session to others: nothing that the lines above have set may stay.
RESET ALL;
