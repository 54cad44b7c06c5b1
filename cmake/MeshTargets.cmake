# mesh_library(NAME SOURCES ... HEADERS ... DEPS ... LIBS ...)
#   A library of agent/. DEPS are other mesh libraries: they are the link line and the allow-list of
#   the `layers` test. A dependency must be declared before its user, so arrows only point down.
#   A library without SOURCES is an INTERFACE library.
# mesh_program(NAME SOURCES ... DEPS ... LIBS ...)
#   Its DEPS are its allow-list too.
# mesh_layer(NAME DEP...)
#   The allow-list of a folder that is no mesh_library (cli).
# mesh_test(NAME LABEL <unit|integration|bpf|e2e> [THREADS] SOURCES ... DEPS ... LIBS ...)
#   THREADS: what it tests has threads, or may be asked by several. The thread sanitizer runs no others.
# mesh_fuzz(NAME SOURCES ... DEPS ...)

add_library(mesh_warnings INTERFACE)
target_compile_options(mesh_warnings INTERFACE
  -Wall -Wextra -Wconversion -Wshadow -Wno-sign-conversion -Wno-missing-field-initializers
  $<$<BOOL:${MESH_WERROR}>:-Werror>)
add_library(mesh::warnings ALIAS mesh_warnings)

add_library(mesh_build INTERFACE)  # what every target of ours is compiled with
target_include_directories(mesh_build INTERFACE "${PROJECT_SOURCE_DIR}/agent")
if(MESH_SANITIZE STREQUAL "address+undefined")
  target_compile_options(mesh_build INTERFACE -fsanitize=address,undefined -fno-sanitize=null -fno-sanitize-recover=undefined
    -fno-omit-frame-pointer)  # null: such an access ends the program anyway
  target_link_options(mesh_build INTERFACE -fsanitize=address,undefined)
  target_compile_definitions(mesh_build INTERFACE MESH_SANITIZED=1)
elseif(MESH_SANITIZE STREQUAL "thread")
  target_compile_options(mesh_build INTERFACE -fsanitize=thread -fno-omit-frame-pointer)
  target_link_options(mesh_build INTERFACE -fsanitize=thread)
  target_compile_definitions(mesh_build INTERFACE MESH_SANITIZED=1)
elseif(MESH_SANITIZE)
  message(FATAL_ERROR "MESH_SANITIZE: address+undefined, thread or empty, not '${MESH_SANITIZE}'")
endif()

if(MESH_BUILD_FUZZ)  # coverage of the libraries guides the fuzzers
  if(NOT MESH_SANITIZE STREQUAL "address+undefined")
    message(FATAL_ERROR "MESH_BUILD_FUZZ needs MESH_SANITIZE=address+undefined")
  endif()
  target_compile_options(mesh_build INTERFACE -fsanitize=fuzzer-no-link)
endif()

set_property(GLOBAL PROPERTY MESH_LAYERS "")

function(mesh_layer name)
  list(JOIN ARGN " " deps)
  set_property(GLOBAL APPEND PROPERTY MESH_LAYERS "${name}: ${deps}")
endfunction()

function(mesh_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;HEADERS;DEPS;LIBS" ${ARGN})
  foreach(dep IN LISTS ARG_DEPS)
    if(NOT TARGET mesh_${dep})
      message(FATAL_ERROR "mesh_library(${name}): '${dep}' is not declared above it; arrows only point down")
    endif()
  endforeach()
  list(TRANSFORM ARG_DEPS PREPEND mesh:: OUTPUT_VARIABLE deps)
  if(ARG_SOURCES)
    add_library(mesh_${name} STATIC ${ARG_SOURCES})
    target_link_libraries(mesh_${name} PUBLIC mesh_build ${deps} ${ARG_LIBS} PRIVATE mesh::warnings)
    target_sources(mesh_${name} PUBLIC FILE_SET HEADERS BASE_DIRS "${PROJECT_SOURCE_DIR}/agent" FILES ${ARG_HEADERS})
    set_target_properties(mesh_${name} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  else()
    add_library(mesh_${name} INTERFACE)
    target_link_libraries(mesh_${name} INTERFACE mesh_build ${deps} ${ARG_LIBS})
    target_sources(mesh_${name} INTERFACE FILE_SET HEADERS BASE_DIRS "${PROJECT_SOURCE_DIR}/agent" FILES ${ARG_HEADERS})
  endif()
  add_library(mesh::${name} ALIAS mesh_${name})
  mesh_layer(${name} ${ARG_DEPS})
endfunction()

function(mesh_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LIBS" ${ARGN})
  list(TRANSFORM ARG_DEPS PREPEND mesh:: OUTPUT_VARIABLE deps)
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE mesh_build mesh::warnings ${deps} ${ARG_LIBS})
  install(TARGETS ${name} RUNTIME)
  mesh_layer(${name} ${ARG_DEPS})
endfunction()

function(mesh_test name)
  cmake_parse_arguments(ARG "THREADS" "LABEL;TIMEOUT" "SOURCES;DEPS;LIBS" ${ARGN})
  if(NOT MESH_BUILD_TESTS OR (MESH_SANITIZE STREQUAL "thread" AND NOT ARG_THREADS))
    return()
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(MESH_SANITIZE STREQUAL "thread")  # its runtime brings operator new, which these replace
    list(FILTER ARG_SOURCES EXCLUDE REGEX "allocation_test\\.cc$")
  endif()
  list(TRANSFORM ARG_DEPS PREPEND mesh:: OUTPUT_VARIABLE deps)
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_compile_options(${name} PRIVATE $<$<CONFIG:RelWithDebInfo>:-O1>)  # a third less to compile; what is measured is in bench/
  target_compile_definitions(${name} PRIVATE MESH_SOURCE_DIR="${PROJECT_SOURCE_DIR}" MESH_BIN_DIR="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  target_link_libraries(${name} PRIVATE mesh_build mesh::warnings ${deps} ${ARG_LIBS} GTest::gmock GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT})
endfunction()

function(mesh_fuzz name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LIBS" ${ARGN})
  if(NOT MESH_BUILD_FUZZ)
    return()
  endif()
  list(TRANSFORM ARG_DEPS PREPEND mesh:: OUTPUT_VARIABLE deps)
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_libraries(${name} PRIVATE mesh_build mesh::warnings ${deps} ${ARG_LIBS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/fuzz")
  if(NOT TARGET fuzzers)
    add_custom_target(fuzzers)
  endif()
  add_dependencies(fuzzers ${name})
endfunction()
