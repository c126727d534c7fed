#!/usr/bin/env bash
# The acceptance walk over HTTP: submit an objective, check the typed answer, and see that the report is a whole file
# inside the reports folder and the same that the service hands out. Exits 1 with a sentence at the first thing wrong.
#
# Usage: execute.sh EDGE_URL REPORTS_FOLDER        needs curl and python3 (or $PYTHON)
set -euo pipefail

edge=${1:?usage: execute.sh EDGE_URL REPORTS_FOLDER}
reports=${2:?usage: execute.sh EDGE_URL REPORTS_FOLDER}
python=${PYTHON:-python3}

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# field NAME: prints a field of the JSON object on standard input; fails when it is missing or not text.
field() {
  "$python" -c '
import json, sys
value = json.load(sys.stdin)
for key in sys.argv[1].split("."):
    value = value[key]
assert isinstance(value, (str, bool)), value
print(value)
' "$1" 2>/dev/null
}

body='{"objective": "What does the log promise?", "output_mode": "OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER",
       "correlation_id": "acceptance-1", "wait": "30s"}'
answer=$(curl -fsS --max-time 60 -X POST "$edge/conductor/execute" -H 'content-type: application/json' -d "$body") ||
  fail "Execute was not answered with success"

status=$(field status <<<"$answer") || fail "the answer has no status: $answer"
[ "$status" = TASK_STATUS_COMPLETED ] || fail "the task is $status: $answer"
task=$(field task_id <<<"$answer") || fail "the answer has no task_id: $answer"
path=$(field report_path <<<"$answer") || fail "the answer has no report_path: $answer"
[ "$path" = "reports/$task.md" ] || fail "report_path is $path, not reports/$task.md"
[ "$(field writer_window_props.path <<<"$answer")" = "$path" ] || fail "writer_window_props.path is not $path"
[ "$(field writer_window_props.preview_mode <<<"$answer")" = True ] || fail "preview_mode is not true"
[ "$(field correlation_id <<<"$answer")" = acceptance-1 ] || fail "the correlation id was not kept"

file="$reports/${path#reports/}"
[ ! -L "$file" ] || fail "$file is a link"
[ -f "$file" ] || fail "the report $file does not exist"
inside=$("$python" -c 'import os, sys; print(os.path.realpath(sys.argv[1]))' "$reports")
[ "$(dirname "$("$python" -c 'import os, sys; print(os.path.realpath(sys.argv[1]))' "$file")")" = "$inside" ] ||
  fail "$file is not inside $reports"
served=$(mktemp)
trap 'rm -f "$served"' EXIT
curl -fsS --max-time 20 -o "$served" "$edge/conductor/tasks/$task/report" || fail "the report cannot be read over HTTP"
[ -s "$served" ] || fail "the report is empty"
cmp -s "$served" "$file" || fail "the report over HTTP is not the file $file"

echo "PASSED: $task is completed and its report is $file"
