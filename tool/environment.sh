# Read by the other scripts, in the project's root: runs a training so that signals reach it; finds, or makes, a Python that has
# what the project needs, and leaves its name in $PYTHON. An active environment that satisfies the requirements comes before .venv.

# Threads that spin while they wait slow everything down where there are more of them than free cores.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

run_training() { # ARGUMENTS: a signal to this script reaches the training, which saves before both end
    if (exec 3<&0) 2> /dev/null; then exec 3<&0; else exec 3< /dev/null; fi # a debugger needs the keyboard
    "$PYTHON" tool/train.py "$@" <&3 3<&- &
    child=$!
    exec 3<&-
    trap 'kill -TERM "$child"' TERM
    trap 'kill -USR1 "$child"' USR1
    trap 'kill -HUP "$child"' HUP
    trap 'kill -INT "$child"' INT # of Ctrl-C the child gets two, and takes them for one
    while :; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2> /dev/null && continue # wait returns at every signal
        last=0
        wait "$child" || last=$? # where it ended while a trap ran; 127 where the first wait has told its status
        [ "$last" = 127 ] || status=$last
        break
    done
    trap - TERM USR1 HUP INT
    return "$status"
}

find_python() { # REQUIREMENTS
    for PYTHON in python python3 .venv/bin/python; do
        if command -v "$PYTHON" > /dev/null && "$PYTHON" tool/requirements.py "$1" 2> /dev/null; then
            return 0
        fi
    done
    return 1
}

need_python() { # REQUIREMENTS: find one, or say what to do
    find_python "$1" && return 0
    for PYTHON in python python3 .venv/bin/python; do # what is missing in each
        if command -v "$PYTHON" > /dev/null; then
            echo "$PYTHON: $("$PYTHON" tool/requirements.py "$1" 2>&1 | tail -n 1)" >&2
        fi
    done
    echo "error: no Python with the packages of $1; run 'sh tool/quickstart.sh' once, or 'pip install -r $1'" >&2
    return 1
}

make_python() { # REQUIREMENTS: find one, or install into .venv
    find_python "$1" && return 0
    for base in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if command -v "$base" > /dev/null && "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
            break
        fi
        base=
    done
    if [ -z "$base" ]; then
        echo "error: Python 3.10 or newer is needed and was not found" >&2
        return 1
    fi
    echo "Installing $1 into .venv (torch is large; this takes a while once)"
    if ! "$base" -m venv .venv; then
        echo "error: 'python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
        return 1
    fi
    PYTHON=.venv/bin/python
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$1" || return 1
    if ! "$PYTHON" -c 'import cv2' 2> /dev/null; then
        # The usual reason is a machine without a screen, which has no libGL; the headless build does not ask for it.
        version=$("$PYTHON" -m pip show opencv-python | sed -n 's/^Version: //p')
        "$PYTHON" -m pip uninstall --quiet --yes opencv-python || return 1
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
            "opencv-python-headless==$version" || return 1
    fi
    "$PYTHON" tool/requirements.py "$1"
}
