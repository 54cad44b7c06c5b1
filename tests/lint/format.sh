#!/bin/sh
# Every C and C++ source is formatted by .clang-format. usage: format.sh SOURCE_DIR
set -eu
cd "$1"
files=$(find agent bpf cli tests bench -name '*.h' -o -name '*.cc' -o -name '*.c' | sort)
[ -n "$files" ]
# shellcheck disable=SC2086
clang-format-19 --dry-run --Werror $files && echo "format: $(echo "$files" | wc -l) files"
