#!/bin/sh
# The outage drill: stops the collector, has the app make more spans than the ring holds, shows the ring
# filling, starts the collector again, and says what was lost. Exits 0 when every span is accounted for.
#
#   compose/drill.sh                  # 3000 spans: 2048 fit the ring, the oldest of the rest are dropped
#   SPANS=1000 compose/drill.sh       # all of them fit: nothing is lost
#
# Needs the running stack (docker compose up --wait), curl and awk.
set -eu

SPANS=${SPANS:-3000}
COMPOSE=${COMPOSE:-docker compose}
APP=${APP:-http://127.0.0.1:8000}
RELAY=${RELAY:-http://127.0.0.1:8889}
PAUSE=${PAUSE:-2}
# Seconds: the collector's start, one back-off of the relay (5 s), and the exports.
RECOVERY=${RECOVERY:-90}

directory=$(cd "$(dirname "$0")" && pwd)
cd "$directory"
started=$(date +%s)
stopped=

die() {
    echo "drill: $*" >&2
    exit 1
}

# COMPOSE may be several words ("docker compose", "podman compose").
# shellcheck disable=SC2086
compose() {
    $COMPOSE "$@"
}

# A drill that is interrupted leaves the collector running.
leave() {
    if [ -n "$stopped" ]; then
        echo "drill: starting the collector again" >&2
        compose start collector >/dev/null 2>&1 || echo "drill: could not; start it by hand" >&2
    fi
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

scrape() {
    curl -fsS --max-time 5 "$RELAY/metrics"
}

# value NAME [LABEL="VALUE"...]: the sum of otlp_relay_NAME over the traces samples of the scrape on
# standard input that have these labels. Prints - when there is no such sample.
value() {
    awk -v name="otlp_relay_$1" -v wanted="${2:-}" '
        index($0, name "{") == 1 && /signal="traces"/ && index($0, wanted) { sum += $NF; n++ }
        END { if (n) printf "%d", sum; else printf "-" }'
}

row() {
    metrics=$(scrape) || die "no metrics at $RELAY/metrics"
    up=$(printf '%s\n' "$metrics" | value collector_up)
    held=$(printf '%s\n' "$metrics" | value queue_items)
    flying=$(printf '%s\n' "$metrics" | value in_flight_items)
    capacity=$(printf '%s\n' "$metrics" | value queue_capacity_items)
    received=$(printf '%s\n' "$metrics" | value received_items_total)
    exported=$(printf '%s\n' "$metrics" | value exported_items_total)
    filtered=$(printf '%s\n' "$metrics" | value filtered_items_total)
    dropped=$(printf '%s\n' "$metrics" | value dropped_items_total)
    outage=$(printf '%s\n' "$metrics" | value outage_seconds)
    # Reasons that have not occurred may have no sample yet.
    [ "$filtered" = - ] && filtered=0
    [ "$dropped" = - ] && dropped=0
    [ "$received" = - ] && received=0
    [ "$exported" = - ] && exported=0
    case $up in 1) up=up ;; 0) up=DOWN ;; *) up=unknown ;; esac
    bar=$(awk -v held="$held" -v capacity="$capacity" 'BEGIN {
        for (i = 0; i < 20; i++) printf (capacity > 0 && i < held * 20 / capacity) ? "#" : "." }')
    printf '%4ds  %-7s  %s %5d of %-5d %9d %9d %8d %6ss\n' "$(($(date +%s) - started))" "$up" "$bar" \
        "$held" "$capacity" "$received" "$exported" "$dropped" "$outage"
}

header() {
    printf '\n%s\n%5s  %-7s  %-20s %14s %9s %9s %8s %7s\n' "$1" time collector "" "in the ring" received \
        exported dropped outage
}

# --- healthy -----------------------------------------------------------------------------------------
scrape >/dev/null || die "the relay does not answer at $RELAY; is the stack running? ($COMPOSE up --wait)"
curl -fsS --max-time 5 "$APP/health" >/dev/null || die "the app does not answer at $APP"

header "Before: the collector is there"
curl -fsS --max-time 30 -X POST "$APP/burst?spans=10" >/dev/null
deadline=$(($(date +%s) + RECOVERY))
until row && [ "$up" = up ]; do
    [ "$(date +%s)" -lt "$deadline" ] || die "the collector took nothing within $RECOVERY s"
    sleep "$PAUSE"
done
dropped_before=$dropped
exported_before=$exported
received_before=$received

# --- outage ------------------------------------------------------------------------------------------
header "Outage: the collector is stopped, the app makes $SPANS spans"
stopped=yes
compose stop collector >/dev/null
burst=$(curl -fsS --max-time 120 -o /dev/null -w '%{time_total}' -X POST "$APP/burst?spans=$SPANS") ||
    die "the app could not deliver its spans"
deadline=$(($(date +%s) + RECOVERY))
while :; do
    row
    [ "$up" = DOWN ] && [ "$((received - received_before))" -ge "$SPANS" ] && break
    [ "$(date +%s)" -lt "$deadline" ] || die "the relay did not notice the outage within $RECOVERY s"
    sleep "$PAUSE"
done
# Two more looks: what waits in the ring waits.
sleep "$PAUSE" && row
sleep "$PAUSE" && row
echo "The app handed its $SPANS spans over in ${burst} s, as if nothing had happened."

# --- recovery ----------------------------------------------------------------------------------------
header "Recovery: the collector is started"
compose start collector >/dev/null
stopped=
deadline=$(($(date +%s) + RECOVERY))
while :; do
    row
    # The app may go on sending, so the ring need not be empty: a tenth is what waits for its batch.
    [ "$up" = up ] && [ "$held" -le "$((capacity / 10))" ] && [ "$exported" -gt "$exported_before" ] && break
    [ "$(date +%s)" -lt "$deadline" ] || die "the ring was not emptied within $RECOVERY s"
    sleep "$PAUSE"
done

# --- the account -------------------------------------------------------------------------------------
lost=$((dropped - dropped_before))
echo
echo "Since the drill began: received $((received - received_before)), exported" \
    "$((exported - exported_before)), dropped $lost, still in the ring or under way $((held + flying))."
if [ "$lost" -gt 0 ]; then
    echo "Dropped by reason, since the relay started:"
    printf '%s\n' "$metrics" | awk '/^otlp_relay_dropped_items_total\{/ && /signal="traces"/ && $NF > 0 {
        match($0, /reason="[^"]*"/); printf "  %-16s %d\n", substr($0, RSTART + 8, RLENGTH - 9), $NF }'
    echo "The ring holds $capacity items, the newest ones; RELAY_QUEUE_SIZE makes it larger."
else
    echo "Nothing was lost: everything fitted into the ring of $capacity items."
fi
accounted=$((filtered + dropped + exported + held + flying))
if [ "$received" -ne "$accounted" ]; then
    die "UNACCOUNTED: received $received, but filtered + dropped + exported + held is $accounted"
fi
echo "Every span is accounted for: received $received = filtered $filtered + dropped $dropped +" \
    "exported $exported + in the ring $held + under way $flying."
