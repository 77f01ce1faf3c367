# Every line calls one nox session; ci/bootstrap makes nox when it is not there. Sessions for one package: README.md.
.PHONY: bench test lint types docs dist clean

bench: ; @ci/bootstrap -s bench-all
test:  ; @ci/bootstrap -s test-all
lint:  ; @ci/bootstrap -s lint
types: ; @ci/bootstrap -s types
docs:  ; @ci/bootstrap -s docs
dist:  ; @ci/bootstrap -s dist
clean: ; @ci/bootstrap -s clean
