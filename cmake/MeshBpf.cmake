# mesh_bpf(NAME SOURCE file.bpf.c DEPENDS headers...)
#   clang object -> bpftool skeleton -> INTERFACE target mesh::bpf_NAME with "NAME.skel.h". The global property
#   MESH_BPF_PRODUCT has the names of those in bpf/.
find_program(BPFTOOL bpftool PATHS /usr/sbin /sbin REQUIRED)
find_program(BPF_CLANG clang-19 REQUIRED)

function(mesh_bpf name)
  cmake_parse_arguments(ARG "" "SOURCE" "DEPENDS" ${ARGN})
  set(object "${CMAKE_CURRENT_BINARY_DIR}/${name}.bpf.o")
  set(skeleton "${CMAKE_CURRENT_BINARY_DIR}/skel/${name}.skel.h")
  set(source "${CMAKE_CURRENT_SOURCE_DIR}/${ARG_SOURCE}")
  list(TRANSFORM ARG_DEPENDS PREPEND "${CMAKE_CURRENT_SOURCE_DIR}/" OUTPUT_VARIABLE depends)
  add_custom_command(
    OUTPUT "${object}"
    COMMAND "${BPF_CLANG}" -target bpf -mcpu=v3 -g -O2 -Wall -Wextra -Werror
            -I "${PROJECT_SOURCE_DIR}/bpf" -idirafter "/usr/include/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu"
            -c "${source}" -o "${object}"
    DEPENDS "${source}" ${depends} VERBATIM)
  add_custom_command(
    OUTPUT "${skeleton}"
    COMMAND ${CMAKE_COMMAND} -E make_directory "${CMAKE_CURRENT_BINARY_DIR}/skel"
    COMMAND "${BPFTOOL}" gen skeleton "${object}" name ${name}_bpf > "${skeleton}"
    DEPENDS "${object}")
  add_custom_target(bpf_${name}_skeleton DEPENDS "${skeleton}")
  if(CMAKE_CURRENT_SOURCE_DIR STREQUAL "${PROJECT_SOURCE_DIR}/bpf")
    set_property(GLOBAL APPEND PROPERTY MESH_BPF_PRODUCT ${name})
  endif()
  add_library(mesh_bpf_${name} INTERFACE)
  add_dependencies(mesh_bpf_${name} bpf_${name}_skeleton)
  target_include_directories(mesh_bpf_${name} SYSTEM INTERFACE "${CMAKE_CURRENT_BINARY_DIR}/skel")
  target_include_directories(mesh_bpf_${name} INTERFACE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(mesh_bpf_${name} INTERFACE PkgConfig::LIBBPF)
  add_library(mesh::bpf_${name} ALIAS mesh_bpf_${name})
endfunction()
