# Finds the fmt headers; fmt is used header-only, so nothing of it is needed at run time.
# Order: -DFMT_INCLUDE_DIR, the system (libfmt-dev), a wheel that ships them (torch), then a fetch into the build
# folder that needs no root: the pinned release archive, the Debian package, the pinned sdist that bundles fmt.
# Sets DG_FMT_INCLUDE_DIR, the folder that holds fmt/format.h.

set(DG_FMT_ARCHIVE https://github.com/fmtlib/fmt/releases/download/10.2.1/fmt-10.2.1.zip)
set(DG_FMT_ARCHIVE_SHA256 312151a2d13c8327f5c9c586ac6cf7cddc1658e8f53edae0ec56509c8fa516c9)
set(DG_FMT_SDIST spdlog==2.0.6)  # its folder spdlog/fmt/bundled is fmt 8.1.1
set(DG_FMT_SDIST_SHA256 9791cf17f1fd23168c0a0803170b3cbf863d7e819adeeb25e224f242e3f9ecef)
set(DG_FMT_FETCH_DIR ${CMAKE_BINARY_DIR}/third-party/fmt)

function(dg_fmt_from_archive)
    file(DOWNLOAD ${DG_FMT_ARCHIVE} ${DG_FMT_FETCH_DIR}/fmt.zip TIMEOUT 30 STATUS status)
    list(GET status 0 code)
    if(NOT code EQUAL 0)
        return()
    endif()
    file(SHA256 ${DG_FMT_FETCH_DIR}/fmt.zip digest)
    if(digest STREQUAL DG_FMT_ARCHIVE_SHA256)
        file(ARCHIVE_EXTRACT INPUT ${DG_FMT_FETCH_DIR}/fmt.zip DESTINATION ${DG_FMT_FETCH_DIR})
    endif()
endfunction()

function(dg_fmt_from_debian)
    execute_process(COMMAND sh -c "apt-get download libfmt-dev && dpkg-deb -x libfmt-dev_*.deb ."
                    WORKING_DIRECTORY ${DG_FMT_FETCH_DIR} OUTPUT_QUIET ERROR_QUIET TIMEOUT 120)
endfunction()

function(dg_fmt_from_sdist)
    set(python ${Python_EXECUTABLE})
    if(NOT python)
        set(python python3)
    endif()
    file(WRITE ${DG_FMT_FETCH_DIR}/sdist.txt "${DG_FMT_SDIST} --hash=sha256:${DG_FMT_SDIST_SHA256}\n")
    execute_process(
        COMMAND sh -c "\"$0\" -m pip download -q --no-deps --no-binary :all: --require-hashes -r sdist.txt && tar xzf spdlog-*.tar.gz && \
mkdir -p bundled && mv spdlog-*/spdlog/include/spdlog/fmt/bundled bundled/fmt"
                ${python}
        WORKING_DIRECTORY ${DG_FMT_FETCH_DIR} OUTPUT_QUIET ERROR_QUIET TIMEOUT 180)
endfunction()

function(dg_find_fmt)
    file(GLOB in_wheels ${Python_SITELIB}/*/include ${Python_SITEARCH}/*/include)
    foreach(source system archive debian sdist)
        if(NOT source STREQUAL "system")
            message(STATUS "fmt headers not found yet: trying the ${source}")
            file(REMOVE_RECURSE ${DG_FMT_FETCH_DIR})
            file(MAKE_DIRECTORY ${DG_FMT_FETCH_DIR})
            cmake_language(CALL dg_fmt_from_${source})
        endif()
        find_path(FMT_INCLUDE_DIR fmt/format.h
                  HINTS ${in_wheels}
                  PATHS ${DG_FMT_FETCH_DIR}/fmt-10.2.1/include ${DG_FMT_FETCH_DIR}/usr/include ${DG_FMT_FETCH_DIR}/bundled)
        if(FMT_INCLUDE_DIR)
            return()
        endif()
    endforeach()
endfunction()

if(NOT FMT_INCLUDE_DIR)
    dg_find_fmt()
endif()
if(NOT EXISTS "${FMT_INCLUDE_DIR}/fmt/format.h")
    message(FATAL_ERROR "fmt: got FMT_INCLUDE_DIR='${FMT_INCLUDE_DIR}', expected a folder with fmt/format.h (8.1 or newer); "
                        "install libfmt-dev or pass -DFMT_INCLUDE_DIR=<folder>")
endif()
set(DG_FMT_INCLUDE_DIR ${FMT_INCLUDE_DIR})
message(STATUS "fmt headers: ${DG_FMT_INCLUDE_DIR}")
